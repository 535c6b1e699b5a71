"""The prompt box. Written to what ipywidgets 7.7 (Colab's) and 8 both have."""

import io
import random

import ipywidgets as widgets
from PIL import Image

from helpers.config import InferenceConfig
from helpers.errors import RunError
from helpers.inference.sample import Progress, Request, Studio

MOST_SEED = 2**31 - 1
WIDE = widgets.Layout(width="640px")
NARROW = widgets.Layout(width="310px")
STYLE = {"description_width": "110px"}


class PromptBox:
    """Type a prompt, press Draw, see the tuned model's pictures, and the base's below them if asked.

    Every picture is kept in samples/ with its settings. `view` is the widget to show.
    """

    def __init__(self, studio: Studio, config: InferenceConfig, prompt: str) -> None:
        self.studio, self.config = studio, config
        self.prompt = widgets.Textarea(
            prompt, description="Prompt", layout=WIDE, style=STYLE, rows=2
        )
        self.negative_prompt = widgets.Text(
            config.negative_prompt, description="Without", layout=WIDE, style=STYLE
        )
        self.steps = _slider("Steps", config.num_inference_steps, 1, 60)
        self.guidance = _slider("Guidance", config.guidance_scale, 1.0, 15.0)
        self.count = _slider("Pictures", 4, 1, 8)
        self.seed = widgets.BoundedIntText(
            value=config.seed, min=0, max=MOST_SEED, description="Seed", layout=NARROW, style=STYLE
        )
        self.styled = _checkbox("in the style (adds the suffix)", ticked=True)
        self.compare = _checkbox("base model beside it", ticked=True)
        self.random_seed = _checkbox("another seed each time", ticked=False)
        self.button = widgets.Button(description="Draw", button_style="primary")
        self.bar = widgets.IntProgress(min=0, max=1, layout=NARROW)
        self.message = widgets.HTML()
        self.gallery = widgets.VBox()
        self.button.on_click(self._on_draw)
        self.view = self._lay_out()

    def _lay_out(self) -> widgets.VBox:
        rows = [
            self.prompt,
            self.negative_prompt,
            widgets.HBox([self.steps, self.guidance]),
            widgets.HBox([self.count, self.seed]),
            widgets.HBox([self.styled, self.random_seed]),
            self.compare,
            widgets.HBox([self.button, self.bar]),
            self.message,
            self.gallery,
        ]
        return widgets.VBox(rows)

    def _on_draw(self, _button: widgets.Button) -> None:
        self.button.disabled = True
        try:
            self.draw()
        except (RunError, RuntimeError, ValueError) as error:
            self._say(str(error).splitlines()[0])
        finally:
            self.button.disabled = False

    def draw(self) -> None:
        """Draw what the fields say, keep it and show it."""
        text = " ".join(self.prompt.value.split())
        if not text:
            self._say("Type a prompt first.")
            return
        if self.random_seed.value:
            self.seed.value = random.randrange(MOST_SEED)
        models = ["tuned", "base"] if self.compare.value else ["tuned"]
        rows = []
        for number, model in enumerate(models):
            requests = self._requests(text, model)
            images = self.studio.draw(
                requests, self.config.batch_size, self._progress(number, len(models))
            )
            for request, image in zip(requests, images, strict=True):
                self.studio.save(request, image)
            rows.append(self._row(model, requests, images))
        self.gallery.children = tuple(rows)
        self._say(f"Kept in {self.studio.run.samples}.")

    def _requests(self, text: str, model: str) -> list[Request]:
        prompt = self.studio.styled(text) if self.styled.value else text
        return [
            Request(
                prompt,
                self.seed.value + i,
                self.negative_prompt.value,
                self.steps.value,
                self.guidance.value,
                model,
            )
            for i in range(self.count.value)
        ]

    def _progress(self, part: int, parts: int) -> Progress:
        def show(done: int, steps: int) -> None:
            self.bar.max = steps * parts
            self.bar.value = steps * part + done

        return show

    def _row(self, model: str, requests: list[Request], images: list[Image.Image]) -> widgets.VBox:
        title = {"tuned": "Tuned", "base": "Base model, same seeds"}[model]
        cells = [
            widgets.VBox(
                [widgets.Image(value=_png(image), width=160), widgets.Label(f"seed {request.seed}")]
            )
            for request, image in zip(requests, images, strict=True)
        ]
        flow = widgets.Layout(flex_flow="row wrap")
        return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), widgets.HBox(cells, layout=flow)])

    def _say(self, text: str) -> None:
        self.message.value = text


def _slider(name: str, value: float, low: float, high: float) -> widgets.Widget:
    kind = widgets.IntSlider if isinstance(value, int) else widgets.FloatSlider
    step = 1 if isinstance(value, int) else 0.5
    return kind(
        value=value, min=low, max=high, step=step, description=name, layout=NARROW, style=STYLE
    )


def _checkbox(text: str, *, ticked: bool) -> widgets.Checkbox:
    return widgets.Checkbox(value=ticked, description=text, indent=False, layout=NARROW)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
