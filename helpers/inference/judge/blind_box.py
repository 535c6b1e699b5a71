"""The form of the blind check in notebook 05: two pictures, a button below each, and the count at the end."""

import html
from collections.abc import Callable

import ipywidgets as widgets
from IPython.display import display
from PIL import Image

from helpers.config import InferenceConfig
from helpers.figures.pictures import evenly, grid, middle_square, open_rgb
from helpers.inference.draw.form_fields import NARROW, ROW, error_text, picture_widget
from helpers.inference.draw.sampler import Sampler, is_blocked
from helpers.inference.judge.blind import (
    ART,
    BLOCKED,
    Pair,
    comparisons,
    count_pairs,
    count_picks,
    describe_picks,
    draw_pair,
    make_pairs,
    read_picks,
    save_pick,
    title,
)
from helpers.mirror.sync import sync_soon

PICTURE_PX = 256
QUESTIONS = {
    True: "Which one is the artist's own?",
    False: "Which one is closer to the artist's pictures above?",
}


class BlindBox:
    """A form that shows pairs of pictures and keeps a person's picks in blind.jsonl. It goes on where it was left.

    after  is called after each pick, to bring the report up to date
    """

    def __init__(
        self, sampler: Sampler, config: InferenceConfig, after: Callable[[], object]
    ) -> None:
        self.sampler, self.config, self.after = sampler, config, after
        options = [(title(name), name) for name in comparisons(sampler)]
        self.against = widgets.Dropdown(options=options, description="Compare with", **NARROW)
        self.begin = widgets.Button(description="Begin", button_style="primary", icon="eye")
        self.message, self.pictures = widgets.HTML(), widgets.VBox()
        self.begin.on_click(lambda _button: self._show_errors(self._begin))
        self.against.observe(lambda _change: self._close(), "value")
        top = widgets.HBox([self.against, self.begin], layout=ROW)
        self.view = widgets.VBox([top, self.message, self.pictures])
        self.left, self.right = _side_button("Left"), _side_button("Right")
        self.left.on_click(lambda _button: self._show_errors(lambda: self._pick(0)))
        self.right.on_click(lambda _button: self._show_errors(lambda: self._pick(1)))
        self.waiting: list[Pair] = []
        self._tell_count()

    def _ipython_display_(self) -> None:
        display(self.view)

    def _begin(self) -> None:
        against = self.against.value
        picked = {row["id"] for row in read_picks(self.sampler.run, self.sampler.model_hash)}
        pairs = make_pairs(self.config, self.sampler, against)
        self.waiting = [pair for pair in pairs if pair.id not in picked]
        self._show_next()

    def _show_next(self) -> None:
        if not self.waiting:
            self._close()
            return
        self.left.disabled = self.right.disabled = True  # until both are there
        pair, total = self.waiting[0], self._total()
        number = total - len(self.waiting) + 1
        question = QUESTIONS[pair.against == ART]
        self._tell(f"Drawing pair {number} of {total} …")
        images = draw_pair(self.sampler, pair)
        if any(map(is_blocked, images)):
            save_pick(self.sampler, self.waiting.pop(0), BLOCKED)
            self._show_next()
            return
        buttons = (self.left, self.right)
        cells = [
            widgets.VBox([picture_widget(_enlarge(image), PICTURE_PX), button])
            for image, button in zip(images, buttons, strict=True)
        ]
        above = [] if pair.against == ART else [picture_widget(self._art(), 2 * PICTURE_PX)]
        self.pictures.children = (*above, widgets.HBox(cells, layout=ROW))
        self._tell(f"{number} of {total}. {question}")
        self.left.disabled = self.right.disabled = False

    def _total(self) -> int:
        return count_pairs(self.config, self.sampler, self.against.value)

    def _art(self) -> Image.Image:
        paths = [path for path, _ in evenly(self.sampler.trained.pictures("train"), 4)]
        return grid([middle_square(open_rgb(path)) for path in paths], 4, cell_px=PICTURE_PX // 2)

    def _pick(self, side: int) -> None:
        if not self.waiting or self.left.disabled:  # pressed twice
            return
        pair = self.waiting.pop(0)
        save_pick(self.sampler, pair, pair.sides[side])
        self.after()
        sync_soon(self.sampler.run)
        self._show_next()

    def _close(self) -> None:
        self.waiting, self.pictures.children = [], ()
        self._tell_count()

    def _tell_count(self) -> None:
        run, model_hash, against = self.sampler.run, self.sampler.model_hash, self.against.value
        picks = [r["picked"] for r in read_picks(run, model_hash) if r["against"] == against]
        found = count_picks(run, model_hash).get(against)
        blocked = picks.count(BLOCKED)
        left_out = f" The safety checker blocked pictures of {blocked} pairs." if blocked else ""
        told = ""
        if 0 < len(picks) < (total := self._total()):
            told = f"{len(picks)} of {total} pairs are done: Begin goes on."
        elif found:
            _, value, reading = describe_picks(against, found)
            told = f"The model's picture was picked in {value}. That is {reading}."
        self._tell(told + left_out)

    def _show_errors(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # browsers do not show exceptions of callbacks
            # the next pair was not drawn, so it cannot be picked from: Begin goes on
            self.waiting, self.pictures.children = [], ()
            self._tell(error_text(error))

    def _tell(self, text: str) -> None:
        self.message.value = html.escape(text, quote=False)


def _side_button(name: str) -> widgets.Button:
    return widgets.Button(description=name, layout=widgets.Layout(width=f"{PICTURE_PX}px"))


def _enlarge(image: Image.Image) -> Image.Image:
    return image.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
