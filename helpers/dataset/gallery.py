"""Pictures of what was left out and why, a button for each that takes it back, and pictures of clusters of copies.

The pictures are an image, which a saved notebook still shows; the buttons are made for ipywidgets 7.7 (Colab's) as
well as 8. Words of others stand in labels, which show no markup.
"""

from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from PIL import Image

from helpers.core.run import Run
from helpers.dataset.curate import take_back
from helpers.figures.pictures import grid, open_rgb

SIDE_PX = 120
CELL_PX = 190
MOST = 15  # images of a reason
FINAL = ("no caption", "no image", "taken down")  # no person's word mends these here


def reasons(left_out: pd.DataFrame) -> list[str]:
    """A line for each kind of reason, the most frequent first, with the first image that has it."""
    firsts = left_out.groupby("kind").first()
    return [
        f"{kind}: {count}{f', {MOST} of them shown' if count > MOST else ''}, "
        f"first {firsts.file_name[kind]}: {firsts.reason[kind]}"
        for kind, count in left_out["kind"].value_counts().items()
    ]


def left_out_sheet(run: Run, left_out: pd.DataFrame, columns: int = 5) -> Image.Image | str:
    """The images left out, by kind of reason, each with its own figure. Says so where there is none."""
    if left_out.empty:
        return "nothing was left out"
    shown = left_out.groupby("kind").head(MOST).sort_values("kind", kind="stable")
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
    """A button for each image left out that takes it back, from the next run of 03 on."""
    shown = left_out[~left_out["kind"].isin(FINAL)].groupby("kind").head(MOST)
    return widgets.VBox([_row(run, row) for row in shown.sort_values("kind").itertuples()])


def _row(run: Run, row: object) -> widgets.HBox:
    button = widgets.Button(description="take back")
    button.on_click(lambda pressed: _taken(pressed, run, row.file_name))
    return widgets.HBox([button, widgets.Label(f"{row.kind}: {row.file_name}")])


def _taken(button: widgets.Button, run: Run, file_name: str) -> None:
    take_back(run, file_name)
    button.description, button.disabled = "taken back", True


def cluster_sheet(
    run: Run, kept: pd.DataFrame, left_out: pd.DataFrame, most: int = 12, columns: int = 5
) -> Image.Image | str:
    """A row for each cluster of copies: the one kept, then the others. Says so where there is none."""
    images = pd.concat([kept.assign(reason=""), left_out])
    sizes = images["cluster"].value_counts()
    leaders = sorted(sizes.index[sizes > 1])[:most]
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
