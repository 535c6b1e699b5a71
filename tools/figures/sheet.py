"""A white sheet for one explaining figure: words, pictures, boxes and arrows at pixel coordinates.

A sheet is 900 px wide and shown at 350 to 700 px, so no words are smaller than 22 px. `collisions` names
words that meet or leave the sheet.
"""

import io
import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image, ImageColor

WIDTH_PX, DPI = 900, 100
MIN_WORDS_PX = 22
# Okabe and Ito's colours, which most colour-blind people tell apart
INK, GREY, PALE, WHITE = "#222222", "#5f6368", "#eef1f4", "#ffffff"
BLUE, ORANGE, GREEN, RED, SKY = "#0072b2", "#e69f00", "#007a5a", "#c44e00", "#cfe6f5"
OWN_COLOURS = (INK, GREY, PALE, WHITE, BLUE, ORANGE, GREEN, RED, SKY)
LINE_HEIGHT, HALF_CAPITAL = 1.25, 0.36  # of the words' size


class Sheet:
    """x goes right and y goes down, in pixels from the upper left corner."""

    def __init__(self, height_px: int) -> None:
        self.height_px = height_px
        self.figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=WHITE)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH_PX), ylim=(height_px, 0))
        self.axes.axis("off")
        self.words = []

    def write(
        self,
        x: float,
        y: float,
        words: str,
        size_px: int = 24,
        colour: str = INK,
        align: str = "left",
        **style: str,
    ) -> None:
        """Words around the height `y`, on as many lines as they have; `align` says which end is at `x`."""
        assert size_px >= MIN_WORDS_PX, words
        lines = words.split("\n")
        first = y + (HALF_CAPITAL - LINE_HEIGHT * (len(lines) - 1) / 2) * size_px
        for i, line in enumerate(lines):
            text = self.axes.text(
                x,
                first + LINE_HEIGHT * size_px * i,
                line,
                size=size_px * 72 / DPI,
                color=colour,
                ha=align,
                **style,
            )
            text.set(va="baseline", zorder=5)
            self.words.append(text)

    def write_upwards(self, x: float, y: float, words: str, size_px: int = MIN_WORDS_PX) -> None:
        """Words turned to read upwards, with their middle at a point: an axis' name."""
        size = size_px * 72 / DPI
        turned = self.axes.text(
            x, y, words, size=size, color=GREY, rotation=90, ha="center", va="center"
        )
        self.words.append(turned)

    def title(self, words: str, y: float = 30) -> None:
        self.write(WIDTH_PX / 2, y, words, 28, align="center", weight="bold")

    def picture(
        self, image: Image.Image, x: float, y: float, width_px: float, frame: str = ""
    ) -> None:
        """A picture from its upper left corner; small ones keep their pixels."""
        height_px = width_px * image.height / image.width
        crisp = image.width * 3 < width_px
        self.axes.imshow(
            np.asarray(image.convert("RGB")),
            extent=(x, x + width_px, y + height_px, y),
            interpolation="nearest" if crisp else "lanczos",
            aspect="auto",
        )
        self.axes.set(xlim=(0, WIDTH_PX), ylim=(self.height_px, 0))
        if frame:
            self.axes.add_patch(
                Rectangle((x, y), width_px, height_px, fill=False, edgecolor=frame, linewidth=4)
            )

    def box(
        self,
        x: float,
        y: float,
        width_px: float,
        height_px: float,
        fill: str = PALE,
        line: str = "none",
    ) -> None:
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width_px,
                height_px,
                boxstyle="round,pad=0,rounding_size=10",
                facecolor=fill,
                edgecolor=line,
                linewidth=2,
                zorder=0,
            )
        )

    def cell(self, x: float, y: float, width_px: float, height_px: float, fill: str) -> None:
        """A box with sharp corners, of exactly this size."""
        self.axes.add_patch(Rectangle((x, y), width_px, height_px, facecolor=fill, zorder=1))

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], colour: str = GREY
    ) -> None:
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=22,
                linewidth=2.5,
                color=colour,
                shrinkA=0,
                shrinkB=0,
                zorder=4,
            )
        )

    def chart(self, x: float, y: float, width_px: float, height_px: float) -> Axes:
        """Axes of their own, whose corner and size leave room for their labels."""
        bottom = 1 - (y + height_px) / self.height_px
        axes = self.figure.add_axes(
            (x / WIDTH_PX, bottom, width_px / WIDTH_PX, height_px / self.height_px)
        )
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=MIN_WORDS_PX * 72 / DPI)
        return axes

    def collisions(self) -> list[str]:
        """Words that leave the sheet, and pairs of words that overlap."""
        renderer = FigureCanvasAgg(self.figure).get_renderer()
        boxes = [(words.get_text(), words.get_window_extent(renderer)) for words in self.words]
        outside = [
            f"{text!r} leaves the sheet"
            for text, box in boxes
            if box.x0 < 0 or box.y0 < 0 or box.x1 > WIDTH_PX or box.y1 > self.height_px
        ]
        return outside + [
            f"{one!r} meets {other!r}"
            for (one, box), (other, near) in itertools.combinations(boxes, 2)
            if box.overlaps(near)
        ]

    def image(self, colours: int = 128) -> Image.Image:
        """The sheet with a palette, so that its file stays small; OWN_COLOURS stay what they are."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI)
        image = Image.open(buffer).convert("RGB")
        sample = image.resize((image.width // 3, image.height // 3), Image.Resampling.NEAREST)
        found = sample.quantize(colours - len(OWN_COLOURS), kmeans=2).getpalette()
        own = np.array([ImageColor.getrgb(colour) for colour in OWN_COLOURS])
        found = np.array(found).reshape(-1, 3)
        is_near = (
            np.abs(found[:, None] - own).max(-1).min(-1) < 12
        )  # Pillow looks colours up roughly
        palette = Image.new("P", (1, 1))
        palette.putpalette([*own.ravel(), *found[~is_near].ravel()])
        return image.quantize(palette=palette, dither=Image.Dither.NONE)
