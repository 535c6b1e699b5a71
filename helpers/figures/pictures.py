"""Draw image grids, contact sheets, bar charts and loss curves, for the notebooks and the report."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from helpers.core.decode import decode

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

INK, PAPER = "#2a2230", "#ffffff"
MARK, MARK_FILL = "#a82f43", "#fbeef0"
GAP_PX = 6


def open_rgb(path: Path) -> Image.Image:
    """Open an image file as upright sRGB, with transparency on white. Raises OSError if decoding fails."""
    return decode(path).image


def middle_square(image: Image.Image) -> Image.Image:
    """Return the largest centred square crop of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def grid(
    images: Sequence[Image.Image],
    columns: int,
    labels: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    cell_px: int = 160,
    label_lines: int = 4,
    marked_row: int | None = None,
) -> Image.Image:
    """Draw images in a grid of square cells, with optional labels below cells and titles above rows.

    labels       one for each image, or one for each column, then only below the last row
    label_lines  the maximum number of lines of a label; longer labels are cut
    marked_row   a row that gets a frame
    """
    rows = -(-len(images) // columns)
    below_last = len(labels) == columns < len(images)
    font = ImageFont.load_default(size=max(10, cell_px // 13))
    labels = [_wrap(label, font, cell_px, label_lines) for label in labels]
    label_px = _label_height(labels, font)
    title_px = font.size + 8 if row_titles else 0
    row_px = title_px + cell_px + GAP_PX + (0 if below_last else label_px)
    size = (columns * (cell_px + GAP_PX) + GAP_PX, rows * row_px + GAP_PX + below_last * label_px)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if marked_row is not None:
        top, gap = marked_row * row_px, GAP_PX // 2
        bottom = top + title_px + cell_px + 2 * gap
        draw.rectangle((1, top + 1, size[0] - 2, bottom), MARK_FILL, MARK, width=2)
    for row, title in enumerate(row_titles):
        draw.text((GAP_PX, row * row_px + 4), title, INK, font)
    for i, image in enumerate(images):
        x = GAP_PX + i % columns * (cell_px + GAP_PX)
        y = i // columns * row_px + title_px + GAP_PX // 2
        tile = _fit(image, cell_px)
        sheet.paste(tile, (x + (cell_px - tile.width) // 2, y + (cell_px - tile.height) // 2))
        number = i - (rows - 1) * columns if below_last else i
        if 0 <= number < len(labels):
            draw.multiline_text((x, y + cell_px + 2), labels[number], INK, font)
    return sheet


def _fit(image: Image.Image, side_px: int) -> Image.Image:
    factor = side_px / max(image.size)
    method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    size = tuple(max(1, round(side * factor)) for side in image.size)
    return image.resize(size, method)


def _label_height(labels: Sequence[str], font: ImageFont.FreeTypeFont) -> int:
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    return lines * (font.size + 5) + 4 if lines else 0


def _wrap(text: str, font: ImageFont.FreeTypeFont, width_px: int, max_lines: int = 4) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:  # a word wider than the cell, such as a file's name, goes on below
            if lines[-1] and font.getlength(lines[-1] + character) > width_px:
                lines.append("")
            lines[-1] += character
    shown = [line for line in lines if line]
    return "\n".join(shown[:max_lines]) + (" …" if len(shown) > max_lines else "")


def stack(sheets: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Stack images vertically at their own size, with a wrapped title above each image."""
    font, width = ImageFont.load_default(size=14), max(s.width for s in sheets)
    titles = [_wrap(title, font, width - 2 * GAP_PX) for title in titles]
    title_px = _label_height(titles, font) + 2 * GAP_PX
    size = width, sum(s.height + title_px for s in sheets)
    stacked, top = Image.new("RGB", size, PAPER), 0
    for sheet, title in zip(sheets, titles, strict=True):
        ImageDraw.Draw(stacked).multiline_text((GAP_PX, top + GAP_PX), title, INK, font)
        stacked.paste(sheet, (0, top + title_px))
        top += sheet.height + title_px
    return stacked


def contact_sheet(
    paths: Iterable[Path], columns: int = 10, most: int = 60, cell_px: int = 96
) -> Image.Image:
    """Draw image files in a grid. A longer list is thinned evenly to `most` files."""
    images = [open_rgb(path) for path in evenly(list(paths), most)]
    return grid(images, max(1, min(columns, len(images))), cell_px=cell_px)


def evenly(items: Sequence, max_items: int) -> list:
    """Pick at most `max_items` items, evenly spread over the sequence."""
    if len(items) <= max_items:
        return list(items)
    return [items[i * len(items) // max_items] for i in range(max_items)]


def data_url(image: Image.Image) -> str:
    """Return an image as a data: URL (JPEG), for a self-contained HTML page."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_curves(log: Sequence[dict[str, float]]) -> Image.Image:
    """Plot training loss and validation loss over optimizer steps, from the rows of train_log.jsonl."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    if losses := _points(log, "loss"):
        steps, values = zip(*losses, strict=True)
        means = list(accumulate(values, lambda mean, value: 0.9 * mean + 0.1 * value))
        axes.plot(steps, values, color="#d9cfe0", linewidth=0.8)
        axes.plot(steps, means, color="#8b6fa8", label="training loss, at random noise")
    for name, colour, label in (
        ("probe_loss", "#4a90c2", "training images, at fixed noise"),
        ("held_out_loss", "#d1495b", "validation loss: held-out images, at fixed noise"),
    ):
        if points := _points(log, name):
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)
    axes.set(xlabel="optimizer step", ylabel="loss", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if log:
        axes.legend(frameon=False)
    return to_image(figure)


def bars(counts: "Mapping[str, int] | pd.Series", ylabel: str) -> Image.Image:
    """Plot a bar chart of counts by name, in the order given."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    counts = dict(counts)
    axes.bar(list(counts), list(counts.values()), color="#8b6fa8")
    axes.set_xticks(evenly(range(len(counts)), 12))
    axes.tick_params(axis="x", rotation=30)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set(ylabel=ylabel, xlim=(-0.7, max(len(counts), 12) - 0.3))
    axes.spines[["top", "right"]].set_visible(False)
    return to_image(figure)


def months(dates: Iterable[str]) -> Image.Image | str:
    """Plot how many posts are of each month, from their ISO dates. If none has a date, return a sentence."""
    counts = Counter(date[:7] or "no date" for date in dates)
    if not counts.keys() - {"no date"}:
        return "no post has a date"
    return bars(dict(sorted(counts.items())), "posts")


def to_image(figure: "Figure") -> Image.Image:
    """Render a matplotlib figure as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer)


def _points(log: Sequence[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in log if name in row]
