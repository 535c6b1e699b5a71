"""Fields and pictures of the forms in notebook 05, in ipywidgets 8 and 7.7 (Colab)."""

import io

import ipywidgets as widgets
from PIL import Image

from helpers.core.errors import DiskError, RunError
from helpers.core.files import NEXT_STEPS

STYLE = {"description_width": "96px"}
WIDE = {"layout": widgets.Layout(width="98%", max_width="640px"), "style": STYLE}
NARROW = {"layout": widgets.Layout(width="98%", max_width="312px"), "style": STYLE}
ROW = widgets.Layout(flex_flow="row wrap", align_items="flex-start")


def slider(
    name: str, value: float, low: float, high: float, step: float | None = None
) -> widgets.Widget:
    """Return a slider, for whole numbers if `value` is one. Its bounds include `value`."""
    kind, usual = (widgets.IntSlider, 1) if isinstance(value, int) else (widgets.FloatSlider, 0.5)
    limits = {"min": min(low, value), "max": max(high, value), "step": step or usual}
    return kind(value=value, description=name, **limits, **NARROW)


def checkbox(text: str, *, ticked: bool) -> widgets.Checkbox:
    """Return a checkbox with its text on the right."""
    layout = NARROW["layout"]
    return widgets.Checkbox(value=ticked, description=text, indent=False, layout=layout)


def picture_widget(image: Image.Image, width_px: int) -> widgets.Image:
    """Return a picture, shown at a width."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return widgets.Image(value=buffer.getvalue(), width=width_px)


def error_text(error: Exception) -> str:
    """Return an error of a form's callback as one line."""
    if isinstance(error, DiskError):
        return f"{error.problem}, and draw again"
    if isinstance(error, RunError):
        return str(error)
    first_line = str(error).strip().partition("\n")[0]
    words = f"{type(error).__name__}: {first_line}".removesuffix(": ")
    step = NEXT_STEPS.get(getattr(error, "errno", None), "nothing was lost: change a setting")
    return f"{words} ({step} and draw again)"
