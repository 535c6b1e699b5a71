"""The prompt box. Written to what ipywidgets 7.7 (Colab's) and 8 both have."""

import html
import io
import random
import threading
from collections.abc import Callable
from functools import partial

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import HTML, display
from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.figures.pictures import open_rgb
from helpers.inference.draw.album import Settings
from helpers.inference.draw.sampler import Cancelled, Progress, Request, Studio
from helpers.inference.draw.schedulers import SCHEDULERS

MOST_SEED = 2**31 - 1
MOST_HISTORY = 16
WIDE = widgets.Layout(width="640px")
NARROW = widgets.Layout(width="312px")
ROW = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
STYLE = {"description_width": "96px"}
IF_DEAD = """<small>If <i>Draw</i> does nothing, or no fields stand above, this page has lost its kernel (it was
restarted, or the page was opened anew): run all cells of the notebook again. The pictures are kept in
<code>{samples}</code> and come back under <i>Last pictures</i>.</small>"""
TITLES = {"tuned": "Tuned", "base": "Base model, same seeds"}


class PromptBox:
    """Type a prompt, press Draw, see the tuned model's pictures, and the base's below them if asked.

    Every picture is kept in samples/ with its settings; a press below one of the last pictures brings them
    back into the fields. Shown by a cell, it has a line of plain HTML below, which stands in the saved page and says
    what to do when no kernel answers; `view` is the widget alone.
    """

    def __init__(self, studio: Studio, config: InferenceConfig, prompt: str) -> None:
        self.studio, self.config = studio, config
        self._stop = threading.Event()
        self._worker: threading.Thread | None = None
        self._make_words(prompt)
        self._make_fields()
        self.button = widgets.Button(description="Draw", button_style="primary", icon="paint-brush")
        self.cancel = widgets.Button(description="Cancel", disabled=True, icon="stop")
        self.bar = widgets.IntProgress(min=0, max=1, layout=NARROW)
        self.message, self.gallery = widgets.HTML(), widgets.VBox()
        self.history = widgets.HBox(layout=ROW)
        self.button.on_click(self._on_draw)
        self.cancel.on_click(lambda _button: self._stop.set())
        for path, settings in studio.album.newest(MOST_HISTORY):
            self._remember(settings, open_rgb(path))
        self.view = self._lay_out()

    def _ipython_display_(self) -> None:
        display(self.view, HTML(IF_DEAD.format(samples=html.escape(str(self.studio.run.samples)))))

    def _make_words(self, prompt: str) -> None:
        self.prompt = widgets.Textarea(
            prompt, description="Prompt", layout=WIDE, style=STYLE, rows=2
        )
        self.negative_prompt = widgets.Text(
            self.config.negative_prompt, description="Without", layout=WIDE, style=STYLE
        )
        self.styled = _checkbox("in the style (adds the suffix)", ticked=True)
        self.compare = _checkbox("base model beside it", ticked=True)
        self.random_seed = _checkbox("another seed each time", ticked=False)

    def _make_fields(self) -> None:
        config, side = self.config, self.studio.resolution_px
        self.steps = _slider("Steps", config.num_inference_steps, 1, 60)
        self.guidance = _slider("Guidance", config.guidance_scale, 1.0, 15.0)
        self.count = _slider("Pictures", 4, 1, 8)
        self.seed = widgets.BoundedIntText(
            config.seed, min=0, max=MOST_SEED, description="Seed", layout=NARROW, style=STYLE
        )
        self.width, self.height = (
            _slider(name, side, side // 2, 2 * side, 8) for name in ("Width", "Height")
        )
        self.scheduler = _choice(widgets.Dropdown, "Scheduler", list(SCHEDULERS))
        steps = [(f"step {int(name[5:])}", name) for name in self.studio.weights.steps()]
        self.checkpoint = _choice(
            widgets.SelectionSlider, "Checkpoint", [*steps, ("the model", "tuned")], "tuned"
        )
        name = "LoRA strength" if self.studio.method == "lora" else "Strength"
        self.strength = _slider(name, 1.0, 0.0, 1.5, 0.05)

    def _lay_out(self) -> widgets.VBox:
        pairs = [
            (self.steps, self.guidance),
            (self.count, self.seed),
            (self.width, self.height),
            (self.scheduler, self.checkpoint),
            (self.strength, self.random_seed),
            (self.styled, self.compare),
            (widgets.HBox([self.button, self.cancel]), self.bar),
        ]
        rows = [widgets.HBox(pair, layout=ROW) for pair in pairs]
        last = widgets.VBox([widgets.HTML("<b>Last pictures</b>"), self.history])
        above = [self.prompt, self.negative_prompt]
        return widgets.VBox([*above, *rows, self.message, self.gallery, last])

    def _on_draw(self, _button: widgets.Button) -> None:
        """Draw at once when code presses the button; for a browser in a thread, so that Cancel is heard."""
        if self.button.disabled:
            return
        self.button.disabled, self.cancel.disabled = True, False
        self._stop.clear()
        if _pressed_in_a_browser():
            self._worker = threading.Thread(target=self._draw_and_tell, daemon=True)
            self._worker.start()
        else:
            self._draw_and_tell()

    def _draw_and_tell(self) -> None:
        try:
            self._tell(self.draw)
        finally:
            self.button.disabled, self.cancel.disabled = False, True

    def _tell(self, act: Callable[[], None]) -> None:
        """Do what a press asks for; whatever goes wrong is told in the box, as a browser shows it nowhere else."""
        try:
            act()
        except Cancelled:
            self._say("Cancelled.")
        except Exception as error:
            self._say(_words_of(error))

    def wait(self) -> None:
        """Wait for what a press in the browser began."""
        if self._worker:
            self._worker.join()

    def draw(self) -> None:
        """Draw what the fields say, keep it and show it. Raises Cancelled if Cancel was pressed."""
        text = " ".join(self.prompt.value.split())
        if not text:
            self._say("Type a prompt first.")
            return
        self._say("Drawing …")
        if self.random_seed.value:
            self.seed.value = random.randrange(MOST_SEED)
        models = [self.checkpoint.value, "base"] if self.compare.value else [self.checkpoint.value]
        shown = []
        for number, model in enumerate(models):
            requests = self._requests(text, model)
            watch = self._progress(number, len(models))
            images = self.studio.draw(requests, self.config.batch_size, watch)
            for request, image in zip(requests, images, strict=True):
                self.studio.save(request, image)
                self._remember(self.studio.settings(request), image)
            shown.append(self._row(model, requests, images))
            self.gallery.children = tuple(shown)
        self._say(f"Kept in {self.studio.run.samples}. {self._cut(text)}".rstrip())

    def _cut(self, text: str) -> str:
        """What of the words is too long to be read."""
        prompt = self.studio.styled(text) if self.styled.value else text
        found = map(self.studio.prompts.told, (prompt, self.negative_prompt.value))
        return " ".join(said for said in found if said)

    def _requests(self, text: str, model: str) -> list[Request]:
        prompt = self.studio.styled(text) if self.styled.value else text
        return [
            Request(
                prompt,
                min(self.seed.value + i, MOST_SEED),
                self.negative_prompt.value,
                self.steps.value,
                self.guidance.value,
                model,
                self.scheduler.value,
                self.width.value,
                self.height.value,
                1.0 if model == "base" else self.strength.value,
            )
            for i in range(self.count.value)
        ]

    def _progress(self, part: int, parts: int) -> Progress:
        def show(done: int, steps: int) -> None:
            if self._stop.is_set():
                raise Cancelled
            self.bar.max = steps * parts
            self.bar.value = steps * part + done

        return show

    def _row(self, model: str, requests: list[Request], images: list[Image.Image]) -> widgets.VBox:
        title = TITLES.get(model, f"Checkpoint of {model.replace('-', ' ')}")
        cells = [
            widgets.VBox([_picture(image, 152), widgets.Label(f"seed {request.seed}")])
            for request, image in zip(requests, images, strict=True)
        ]
        return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), widgets.HBox(cells, layout=ROW)])

    def _remember(self, settings: Settings, image: Image.Image) -> None:
        """Put a picture first among the last ones."""
        small = image.copy()
        small.thumbnail((96, 96))
        name = f"{settings['model']} {settings['seed']}"
        button = widgets.Button(
            description=name, tooltip=settings["prompt"], layout=widgets.Layout(width="96px")
        )
        button.on_click(lambda _button: self._tell(partial(self.restore, settings)))
        entry = widgets.VBox([_picture(small, 96), button])
        self.history.children = (entry, *self.history.children)[:MOST_HISTORY]

    def restore(self, settings: Settings) -> None:
        """Bring a picture's settings back into the fields."""
        prompt, suffix, model = settings["prompt"], self.studio.suffix, settings["model"]
        self.styled.value = prompt.endswith(suffix)
        self.prompt.value = prompt.removesuffix(suffix)
        self.negative_prompt.value = settings["negative_prompt"]
        self.steps.value, self.guidance.value = (
            settings["num_inference_steps"],
            settings["guidance_scale"],
        )
        self.seed.value, self.count.value, self.random_seed.value = settings["seed"], 1, False
        self.width.value, self.height.value = settings["width_px"], settings["height_px"]
        self.scheduler.value, self.strength.value = settings["scheduler"], settings["strength"]
        self.compare.value = model == "base"
        kept = [value for _, value in self.checkpoint.options]
        self.checkpoint.value = model if model in kept else "tuned"
        gone = model != "base" and model not in kept
        self._say(f"{model} is not kept any more." if gone else "Settings brought back.")

    def _say(self, text: str) -> None:
        self.message.value = html.escape(text, quote=False)


def _words_of(error: Exception) -> str:
    """An error in a line: our own words, or its kind and its first line."""
    if isinstance(error, RunError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    words = f"{type(error).__name__}: {first}".removesuffix(": ")
    return f"{words} (nothing was lost: change a setting and draw again)"


def _pressed_in_a_browser() -> bool:
    """Whether the kernel is handling a message from a widget, and not a cell's code."""
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if kernel else {}
    return (parent or {}).get("header", {}).get("msg_type") == "comm_msg"


def _slider(
    name: str, value: float, low: float, high: float, step: float | None = None
) -> widgets.Widget:
    whole = isinstance(value, int)
    kind = widgets.IntSlider if whole else widgets.FloatSlider
    step = step or (1 if whole else 0.5)
    low, high = min(low, value), max(high, value)
    return kind(
        value=value, min=low, max=high, step=step, description=name, layout=NARROW, style=STYLE
    )


def _choice(kind: type, name: str, options: list, value: str | None = None) -> widgets.Widget:
    first = value or options[0]
    return kind(options=options, value=first, description=name, layout=NARROW, style=STYLE)


def _checkbox(text: str, *, ticked: bool) -> widgets.Checkbox:
    return widgets.Checkbox(value=ticked, description=text, indent=False, layout=NARROW)


def _picture(image: Image.Image, width_px: int) -> widgets.Image:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return widgets.Image(value=buffer.getvalue(), width=width_px)
