"""The prompt box's part "From a picture": an upload or a past sample, what of it is drawn anew, and how much."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from PIL import Image

from helpers.core.errors import RunError
from helpers.figures.pictures import open_rgb
from helpers.inference.draw.album import Settings
from helpers.inference.draw.fit_picture import (
    Size,
    fit,
    fit_mask,
    read_mask,
    read_upload,
    rectangle_mask,
    share_cropped,
    show_mask,
    size_for,
)
from helpers.inference.draw.form_fields import NARROW, ROW, picture_widget, slider
from helpers.inference.draw.from_picture import FromPicture
from helpers.inference.draw.sampler import NO_CONTROLNET, Sampler

TITLE, IN_USE = "From a picture", "From a picture (in use)"
TYPES = "image/*,.heic,.heif,.avif,.tif,.tiff,.psd"
ALL, RECTANGLE, MASK, SKETCH = "all of it", "a rectangle", "what a mask shows", "by its lines"
NO_PAST = ("choose", None)
MAX_PAST = 16
PREVIEW_PX = 208
HINT = "<small>0 keeps the picture, 1 keeps nothing of it. A sketch wants 0.6 to 0.8.</small>"
MASK_HINT = "<small>White is drawn anew; it has the picture's shape.</small>"
WORST_CROP = 0.05  # told from here


class PictureForm:
    """A form for what the prompt box draws from. It is folded up, and takes a line, until someone opens it.

    width, height  the prompt box's sliders, which are set to the aspect of a picture
    act            calls a function, and shows its error to the user
    tell           shows a text to the user
    """

    def __init__(
        self,
        sampler: Sampler,
        width: widgets.IntSlider,
        height: widgets.IntSlider,
        act: Callable[[Callable[[], None]], None],
        tell: Callable[[str], None],
    ) -> None:
        self.sampler, self.width, self.height, self.tell = sampler, width, height, tell
        self.picture: Image.Image | None = None
        self.mask: Image.Image | None = None  # of the picture's shape
        self.upload = _upload_button("Upload a picture")
        self.past = widgets.Dropdown(options=[NO_PAST], description="Or a sample", **NARROW)
        self.denoise = slider("Denoise", 0.6, 0.0, 1.0, 0.05)
        places = [ALL, RECTANGLE, MASK] + [SKETCH] * bool(sampler.controlnet)
        self.where = widgets.Dropdown(options=places, description="Draw anew", **NARROW)
        self.across, self.down = _percents("Across, %"), _percents("Down, %")
        self.mask_upload = _upload_button("Upload a mask")
        self.control_scale = slider("Lines", 1.0, 0.0, 2.0, 0.05)
        self.remove = widgets.Button(description="Without a picture", icon="times")
        self.preview, self.body = widgets.VBox(), widgets.VBox()
        self.view = widgets.Accordion(children=[self.body], selected_index=None)

        _on_upload(self.upload, act, self._take_upload)
        _on_upload(self.mask_upload, act, self._take_mask)
        self._on_past = lambda change: act(lambda: self._take_past(change["new"]))
        self.past.observe(self._on_past, "value")
        self.remove.on_click(lambda _button: self.restore(None))
        self.where.observe(lambda _change: act(self._choose_place), "value")
        for field in (self.across, self.down, self.width, self.height):
            field.observe(lambda _change: self._show_preview(), "value")
        self._lay_out()

    def value(self) -> FromPicture | None:
        """Return what to draw from, kept in samples/inputs/, or None. Raises RunError if a mask is needed first."""
        if self.picture is None:
            return None
        keep, image = self.sampler.album.keep_input, fit(self.picture, self._size)
        if self.where.value == SKETCH:
            given = {"controlnet": self.sampler.controlnet.hash}
            return FromPicture(keep(image), control_scale=self.control_scale.value, **given)
        mask = self._fitted_mask()
        return FromPicture(keep(image), keep(mask) if mask else "", self.denoise.value)

    def restore(self, start: dict[str, Any] | None) -> None:
        """Fill the form with the settings `from_picture` of a saved picture, at its width and height.

        Raises RunError if the picture is gone from samples/inputs/, or its ControlNet is not loaded.
        """
        self.picture = self.mask = None
        self.past.value, self.where.value = None, ALL
        try:
            if start:
                self._fill(start)
        finally:
            self._lay_out()

    def _fill(self, start: dict[str, Any]) -> None:
        if start["controlnet"] and not self.sampler.controlnet:
            raise RunError(NO_CONTROLNET)
        album = self.sampler.album
        self.mask = album.read_input(start["mask"]) if start["mask"] else None
        self.picture = album.read_input(start["image"])
        self.denoise.value = start["denoising_strength"]
        self.control_scale.value = start["control_scale"]
        self.where.value = SKETCH if start["controlnet"] else MASK if self.mask else ALL

    def add_past(self, path: Path, settings: Settings) -> None:
        """Offer a saved sample to draw from, above those that were offered before."""
        name = f"{settings['model']} {settings['seed']}: {settings['prompt']}"
        rest = [option for option in self.past.options[1:] if option[1] != path]
        chosen = self.past.value
        self.past.unobserve(self._on_past, "value")  # new options choose the first of them
        self.past.options = [NO_PAST, (name[:60], path), *rest][: MAX_PAST + 1]
        self.past.value = chosen if chosen in [p for _, p in self.past.options] else None
        self.past.observe(self._on_past, "value")

    @property
    def _size(self) -> Size:
        return self.width.value, self.height.value

    def _take_upload(self, name: str, content: bytes) -> None:
        picture = read_upload(name, content)
        self.past.value = None
        self._take(picture.image, f"{name} is taken", picture.notes)

    def _take_past(self, path: Path | None) -> None:
        if path:
            self._take(open_rgb(path), f"{path.name} is taken")

    def _take(self, image: Image.Image, words: str, notes: tuple[str, ...] = ()) -> None:
        given, side = image.size, self.sampler.resolution_px
        image.thumbnail((8 * side, 8 * side))  # for memory: four times what is drawn at most
        self.picture, self.mask = image, None
        self.width.value, self.height.value = size = size_for(image, side)
        words = [f"{words}: {given[0]} x {given[1]} px, drawn at {size[0]} x {size[1]}", *notes]
        if (share := share_cropped(image, size)) > WORST_CROP:
            words.append(f"{share:.0%} of it is cropped off, since it is so narrow")
        self.tell(f"{'; '.join(words)}.")
        self._lay_out()

    def _take_mask(self, name: str, content: bytes) -> None:
        mask = read_mask(name, content)
        fitted = fit_mask(mask, self.picture, self._size)  # or it says what is wrong
        self.mask = mask
        is_white = fitted.getextrema()[0] == 255
        told = ": it is white all over, so all of the picture is drawn anew" if is_white else ""
        self.tell(f"{name} is taken as the mask{told}.")
        self._show_preview()

    def _choose_place(self) -> None:
        if self.where.value == SKETCH:
            self.tell(f"{self.sampler.controlnet}.")
        self._lay_out()

    def _fitted_mask(self) -> Image.Image | None:
        if self.where.value == RECTANGLE:
            (left, right), (top, bottom) = self.across.value, self.down.value
            box = (left / 100, top / 100, right / 100, bottom / 100)
            return rectangle_mask(box, self._size)
        if self.where.value != MASK:
            return None
        if self.mask is None:
            raise RunError("Upload a mask first: white is drawn anew.")
        return fit_mask(self.mask, self.picture, self._size)

    def _lay_out(self) -> None:
        self.view.set_title(0, TITLE if self.picture is None else IN_USE)
        given = widgets.HBox([self.upload, self.past], layout=ROW)
        if self.picture is None:
            self.body.children = (given,)
            return
        where = self.where.value
        places = {
            RECTANGLE: [self.across, self.down],
            MASK: [self.mask_upload, widgets.HTML(MASK_HINT)],
            SKETCH: [self.control_scale],
        }
        strength = [] if where == SKETCH else [self.denoise, widgets.HTML(HINT)]
        fields = widgets.VBox([self.where, *places.get(where, []), *strength, self.remove])
        self.body.children = (given, widgets.HBox([self.preview, fields], layout=ROW))
        self._show_preview()

    def _show_preview(self) -> None:
        if self.picture is None:
            return
        image, mask = fit(self.picture, self._size), None
        if self.where.value == RECTANGLE or self.mask:
            try:
                mask = self._fitted_mask()
            except RunError as error:
                self.tell(str(error))
        shown = show_mask(image, mask) if mask else image
        shown.thumbnail((2 * PREVIEW_PX, 2 * PREVIEW_PX))
        self.preview.children = (picture_widget(shown, PREVIEW_PX),)


def _on_upload(
    button: widgets.FileUpload,
    act: Callable[[Callable[[], None]], None],
    take: Callable[[str, bytes], None],
) -> None:
    """Call `take`, by `act`, with the name and content of each file that is uploaded."""

    def on_change(change: dict[str, Any]) -> None:
        for name, content in uploaded(change["new"]):
            act(partial(take, name, content))
        # emptied: the same file again would be no change
        button.set_trait("value", type(change["new"])())

    button.observe(on_change, "value")


def uploaded(value: Any) -> list[tuple[str, bytes]]:
    """Return the names and contents of a FileUpload's files: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, dict):
        value = [file | {"name": name} for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


def _upload_button(text: str) -> widgets.FileUpload:
    layout = widgets.Layout(width="200px")
    return widgets.FileUpload(description=text, accept=TYPES, multiple=False, layout=layout)


def _percents(name: str) -> widgets.IntRangeSlider:
    return widgets.IntRangeSlider(value=(25, 75), min=0, max=100, description=name, **NARROW)
