"""The prompt box of notebook 05: a form that draws pictures from typed prompts, in ipywidgets 8 and 7.7 (Colab)."""

import html
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import HTML, display
from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.decode import ImageError
from helpers.core.errors import DiskError, RunError
from helpers.figures.pictures import open_rgb
from helpers.inference.draw.album import Settings
from helpers.inference.draw.fit_picture import STEP_PX, least_side
from helpers.inference.draw.form_fields import (
    NARROW,
    ROW,
    WIDE,
    checkbox,
    error_text,
    picture_widget,
    slider,
)
from helpers.inference.draw.from_picture import FromPicture
from helpers.inference.draw.picture_form import PictureForm
from helpers.inference.draw.request import Request
from helpers.inference.draw.sampler import Cancelled, Progress, Sampler
from helpers.inference.draw.schedulers import SCHEDULERS
from helpers.inference.draw.speed import speed_cost
from helpers.mirror.sync import sync_soon

MAX_SEED = 2**31 - 1
MAX_HISTORY = 16
FIELDS = {  # the form's field of each setting, except prompt, seed and model
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "width_px": "width",
    "height_px": "height",
    "scheduler": "scheduler",
    "strength": "strength",
}
NO_KERNEL = """<small>If <i>Draw</i> does nothing, or no fields stand above, this page has lost its kernel (it was
restarted, or the page was opened anew): run all cells of the notebook again. The pictures are kept in
<code>{samples}</code> and come back under <i>Last pictures</i>.</small>"""
TITLES = {"tuned": "Tuned", "base": "Base model, same seeds"}


class PromptBox:
    """A form that draws a typed prompt with a chosen model and, if ticked, with the base model too.

    Every picture is saved in samples/ with its settings; a button below it restores them in the form. A cell that shows
    the box also shows plain HTML, which stays in the saved notebook and says what to do when no kernel answers.
    """

    def __init__(self, sampler: Sampler, config: InferenceConfig, prompt: str) -> None:
        self.sampler, self.config = sampler, config
        self._stop = threading.Event()
        self._make_fields(prompt)
        self.button = widgets.Button(description="Draw", button_style="primary", icon="paint-brush")
        self.cancel = widgets.Button(description="Cancel", disabled=True, icon="stop")
        self.bar = widgets.IntProgress(min=0, max=1, layout=NARROW["layout"])
        self.message, self.gallery = widgets.HTML(), widgets.VBox()
        self.history = widgets.HBox(layout=ROW)
        self.button.on_click(self._on_draw)
        self.cancel.on_click(lambda _button: self._stop.set())
        form = PictureForm(sampler, self.width, self.height, self._show_errors, self._show)
        self.from_picture = form
        for path, settings in sampler.album.newest(MAX_HISTORY):
            with suppress(ImageError):  # checksums do not find all damage
                self._add_to_history(path, settings, open_rgb(path))
        self.fast.observe(lambda _change: self._set_fast(), "value")
        self.view = self._make_layout()

    def _ipython_display_(self) -> None:
        samples = html.escape(str(self.sampler.run.samples))
        display(self.view, HTML(NO_KERNEL.format(samples=samples)))

    def _make_fields(self, prompt: str) -> None:
        config, side = self.config, self.sampler.resolution_px
        self.prompt = widgets.Textarea(prompt, description="Prompt", rows=2, **WIDE)
        self.negative_prompt = widgets.Text(config.negative_prompt, description="Negative", **WIDE)
        self.styled = checkbox("in the style (adds the suffix)", ticked=True)
        self.compare = checkbox("base model beside it", ticked=True)
        self.random_seed = checkbox("another seed each time", ticked=False)
        self.steps = slider("Steps", config.num_inference_steps, 1, 60)
        self.guidance = slider("Guidance", config.guidance_scale, 1.0, 15.0)
        self.count = slider("Pictures", 4, 1, 8)
        limits = {"min": 0, "max": MAX_SEED}
        self.seed = widgets.BoundedIntText(config.seed, description="Seed", **limits, **NARROW)
        sides = least_side(side), 2 * side, STEP_PX
        self.width, self.height = slider("Width", side, *sides), slider("Height", side, *sides)
        self.scheduler = widgets.Dropdown(
            options=list(SCHEDULERS), description="Scheduler", **NARROW
        )
        steps = [(f"step {int(name[5:])}", name) for name in self.sampler.weights.steps()]
        models = [*steps, ("the model", "tuned")]
        self.checkpoint = widgets.SelectionSlider(
            options=models, value="tuned", description="Checkpoint", **NARROW
        )
        name = "LoRA strength" if self.sampler.method == "lora" else "Strength"
        self.strength = slider(name, 1.0, 0.0, 1.5, 0.05)
        self.fast, self.cost = checkbox("fast", ticked=False), widgets.HTML(layout=WIDE["layout"])
        self._offer_fast()

    def _offer_fast(self) -> None:
        """Describe the switch, with what it costs by the report; it is hidden where no speed LoRA can be used."""
        try:
            speed = self.sampler.use_speed_lora(self.config)
        except RunError as error:
            speed, cost = None, str(error)
        else:
            cost = speed_cost(self.sampler.run, speed) if speed else ""
        self.fast.description = f"fast: {speed}" if speed else "fast"
        self.fast.layout = widgets.Layout(width="640px", display=None if speed else "none")
        self.cost.value = f"<small>{html.escape(cost, quote=False)}</small>" if cost else ""

    def _set_fast(self) -> None:
        fast = self.fast.value and self.sampler.speed
        asked = fast or self.config
        self.steps.value = asked.steps if fast else asked.num_inference_steps
        self.guidance.value = max(asked.guidance, 1.0) if fast else asked.guidance_scale
        self.scheduler.disabled = bool(fast)

    def _make_layout(self) -> widgets.VBox:
        pairs = [
            (self.steps, self.guidance),
            (self.count, self.seed),
            (self.width, self.height),
            (self.scheduler, self.checkpoint),
            (self.strength, self.random_seed),
            (self.styled, self.compare),
            (self.fast, self.cost),
            (widgets.HBox([self.button, self.cancel], layout=ROW), self.bar),
        ]
        rows = [widgets.HBox(pair, layout=ROW) for pair in pairs]
        last = widgets.VBox([widgets.HTML("<b>Last pictures</b>"), self.history])
        above = [self.prompt, self.negative_prompt, self.from_picture.view]
        return widgets.VBox([*above, *rows, self.message, self.gallery, last])

    def _on_draw(self, _button: widgets.Button) -> None:
        if self.button.disabled:
            return
        self.button.disabled, self.cancel.disabled = True, False
        self._stop.clear()
        if _is_called_by_browser():  # in a thread, so that Cancel still works
            threading.Thread(target=self._draw_and_unlock, daemon=True).start()
        else:
            self._draw_and_unlock()

    def _draw_and_unlock(self) -> None:
        try:
            self._show_errors(self.draw)
        finally:
            self.button.disabled, self.cancel.disabled = False, True

    def _show_errors(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Cancelled:
            self._show("Cancelled.")
        except Exception as error:  # browsers do not show exceptions of callbacks
            self._show(error_text(error))

    def draw(self) -> None:
        """Draw, save and show the pictures that the form describes. Raises Cancelled if Cancel was pressed."""
        text = " ".join(self.prompt.value.split())
        if not text:
            self._show("Type a prompt first.")
            return
        self._show("Drawing …")
        if self.random_seed.value:
            self.seed.value = random.randrange(MAX_SEED)
        prompt = self.sampler.styled(text) if self.styled.value else text
        models = [self.checkpoint.value, "base"] if self.compare.value else [self.checkpoint.value]
        start = self.from_picture.value()
        # as a whole at first: while it draws, fields can be changed
        asked = [self._make_requests(prompt, model, start) for model in models]
        warning = self.sampler.prompts.truncation_warning
        warnings = warning(prompt), warning(self.negative_prompt.value), self._no_steps(start)
        rows = []
        for number, (model, requests) in enumerate(zip(models, asked, strict=True)):
            progress = self._progress_callback(number, len(models))
            images = self.sampler.draw(requests, self.config.batch_size, progress)
            rows.append(self._row(model, requests, images))
            self.gallery.children = tuple(rows)
            self._keep(requests, images)
        self._show(" ".join(filter(None, (f"Kept in {self.sampler.run.samples}.", *warnings))))

    def _keep(self, requests: list[Request], images: list[Image.Image]) -> None:
        """Save pictures that are shown. Raises RunError if the disk refuses one."""
        try:
            for request, image in zip(requests, images, strict=True):
                path = self.sampler.save(request, image)
                self._add_to_history(path, self.sampler.settings(request), image)
            sync_soon(self.sampler.run)
        except (DiskError, OSError) as error:
            raise RunError(
                f"{error_text(error)}. What was drawn is shown below, and not all of it is kept."
            ) from error

    def _no_steps(self, start: FromPicture | None) -> str:
        steps = self.steps.value
        if not start or start.steps_run(steps):
            return ""
        return (
            f"With Denoise at {start.denoising_strength:g} none of {steps} steps is run: the picture only went through "
            "the autoencoder."
        )

    def _make_requests(self, prompt: str, model: str, start: FromPicture | None) -> list[Request]:
        values = {name: getattr(self, field).value for name, field in FIELDS.items()}
        if model == "base":
            values["strength"] = 1.0
        if self.fast.value:
            values |= {
                "speed": self.sampler.speed.weight,
                "scheduler": self.sampler.speed.scheduler,
            }
        seeds = [min(self.seed.value + i, MAX_SEED) for i in range(self.count.value)]
        values |= {"model": model, "from_picture": start}
        return [Request(prompt, seed, **values) for seed in seeds]

    def _progress_callback(self, part: int, parts: int) -> Progress:
        def show(done: int, steps: int) -> None:
            if self._stop.is_set():
                raise Cancelled
            self.bar.max = steps * parts
            self.bar.value = steps * part + done

        return show

    def _row(self, model: str, requests: list[Request], images: list[Image.Image]) -> widgets.VBox:
        title = TITLES.get(model, f"Checkpoint of {model.replace('-', ' ')}")
        cells = [
            widgets.VBox([picture_widget(image, 152), widgets.Label(f"seed {request.seed}")])
            for request, image in zip(requests, images, strict=True)
        ]
        return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), widgets.HBox(cells, layout=ROW)])

    def _add_to_history(self, path: Path, settings: Settings, image: Image.Image) -> None:
        small = image.copy()
        small.thumbnail((96, 96))
        name, layout = f"{settings['model']} {settings['seed']}", widgets.Layout(width="96px")
        button = widgets.Button(description=name, tooltip=settings["prompt"], layout=layout)
        button.on_click(lambda _button: self._show_errors(lambda: self.restore(settings)))
        entry = widgets.VBox([picture_widget(small, 96), button])
        self.history.children = (entry, *self.history.children)[:MAX_HISTORY]
        self.from_picture.add_past(path, settings)

    def restore(self, settings: Settings) -> None:
        """Fill the form with a picture's settings, and say what has changed since it was drawn."""
        prompt, suffix, model = settings["prompt"], self.sampler.suffix, settings["model"]
        self.styled.value = prompt.endswith(suffix)
        self.prompt.value = prompt.removesuffix(suffix)
        self.seed.value, self.count.value, self.random_seed.value = settings["seed"], 1, False
        self.fast.value = bool(settings.get("speed") and self.sampler.speed)
        for name, field in FIELDS.items():
            if name != "scheduler" or not settings.get("speed"):
                _set(getattr(self, field), settings[name])
        self.compare.value = model == "base"
        names = [value for _, value in self.checkpoint.options]
        self.checkpoint.value = model if model in names else "tuned"
        self.from_picture.restore(settings.get("from_picture"))
        change = self._find_change(settings)
        self._show(f"Settings brought back{'; ' if change else ''}{change}.")

    def _find_change(self, settings: Settings) -> str:
        """Return why the form cannot draw this picture again, though it has its settings, or ""."""
        model, speed = settings["model"], self.sampler.speed
        if model != "base" and model not in [value for _, value in self.checkpoint.options]:
            return f"{model} was deleted, so the model is chosen"
        if what := self.sampler.find_change(settings):
            return f"it was drawn {what}"
        asked = settings.get("speed"), settings["scheduler"]
        if asked[0] and asked != (speed.weight, speed.scheduler):
            return f"it was drawn by {asked[1]} at a weight of {asked[0]:g}: set speed_scheduler and speed_weight"
        return ""

    def _show(self, text: str) -> None:
        self.message.value = html.escape(text, quote=False)


def _set(field: Any, value: Any) -> None:
    """Set a field's value; a slider's ends move where the picture was drawn with more or less than it offers."""
    if hasattr(field, "max"):
        field.min, field.max = min(field.min, value), max(field.max, value)
    field.value = value


def _is_called_by_browser() -> bool:
    kernel = getattr(get_ipython(), "kernel", None)
    parent = kernel.get_parent("shell") if kernel else {}
    # a widget's message, not a notebook cell's
    return (parent or {}).get("header", {}).get("msg_type") == "comm_msg"
