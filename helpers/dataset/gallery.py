"""Show left-out images, with buttons to include them, and clusters of copies. Works in ipywidgets 7.7 and 8."""

from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from PIL import Image

from helpers.core.run import Run
from helpers.dataset.curate import take_back
from helpers.figures.pictures import grid, open_rgb
from helpers.mirror.sync import sync_soon

SIDE_PX = 120
CELL_PX = 190
MAX_PER_REASON = 15  # images
FINAL = ("no caption", "no image", "taken down")  # these cannot be taken back here


def reasons(left_out: pd.DataFrame) -> list[str]:
    """Return one line per kind of reason for leaving images out: the number of images and one example."""
    firsts = left_out.groupby("kind").first()
    return [
        f"{kind}: {count}{f', {MAX_PER_REASON} of them shown' if count > MAX_PER_REASON else ''}, "
        f"first {firsts.file_name[kind]}: {firsts.reason[kind]}"
        for kind, count in left_out["kind"].value_counts().items()
    ]


def left_out_sheet(run: Run, left_out: pd.DataFrame, columns: int = 5) -> Image.Image | str:
    """Return a contact sheet of the left-out images with their reasons. If none were left out, return a sentence."""
    if left_out.empty:
        return "nothing was left out"
    shown = left_out.groupby("kind").head(MAX_PER_REASON).sort_values("kind", kind="stable")
    tiles = [_tile(run.image(name)) for name in shown["file_name"]]
    labels = [f"{row.file_name}, {row.kind}: {row.reason}" for row in shown.itertuples()]
    return grid(tiles, columns, labels, cell_px=CELL_PX, label_lines=8)


def _tile(path: Path) -> Image.Image:
    try:
        image = open_rgb(path)
    except OSError:
        return Image.new("RGB", (1, 1), "#dddddd")
    image.thumbnail((CELL_PX, CELL_PX))
    return image


def gallery(run: Run, left_out: pd.DataFrame) -> widgets.VBox:
    """Return a box that lists left-out images. A button beside each includes the image in later runs of notebook 03."""
    shown = left_out[~left_out["kind"].isin(FINAL)].groupby("kind").head(MAX_PER_REASON)
    return widgets.VBox([_row(run, row) for row in shown.sort_values("kind").itertuples()])


def _row(run: Run, row: object) -> widgets.HBox:
    def include(button: widgets.Button) -> None:
        take_back(run, row.file_name)
        sync_soon(run)
        button.description, button.disabled = "taken back", True

    button = widgets.Button(description="take back")
    button.on_click(include)
    label = widgets.Label(f"{row.kind}: {row.file_name}")  # renders no markup
    return widgets.HBox([button, label])


def cluster_sheet(
    run: Run, kept: pd.DataFrame, left_out: pd.DataFrame, count: int = 12, columns: int = 5
) -> Image.Image | str:
    """Return a contact sheet with one cluster of copies per row, best copy first. Without copies, return a sentence."""
    images = pd.concat([kept.assign(reason=""), left_out])
    sizes = images["cluster"].value_counts()
    leaders = sorted(sizes.index[sizes > 1])[:count]
    if not leaders:
        return "no two images are copies of one another"
    tiles, titles = [], []
    for leader in leaders:
        names = images.loc[images["cluster"] == leader, "file_name"]
        row = [leader, *names[names != leader]][:columns]
        blank = Image.new("RGB", (1, 1), "white")
        tiles += [open_rgb(run.image(name)) for name in row] + [blank] * (columns - len(row))
        titles.append(f"{leader} and {len(names) - 1} more")
    return grid(tiles, columns, row_titles=titles, cell_px=SIDE_PX)
