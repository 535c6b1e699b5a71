"""Pictures of what was left out and why, with a button that takes an image back, and of clusters of copies.

Made for ipywidgets 7.7 (Colab's) as well as 8. Words of others are escaped: they show no markup.
"""

import html
import io
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from PIL import Image

from helpers.core.run import Run
from helpers.dataset.curate import take_back
from helpers.figures.pictures import grid, open_rgb

SIDE_PX = 120
MOST = 24  # images of a reason
FINAL = ("no caption", "no image", "taken down")  # no person's word mends these here


def gallery(run: Run, left_out: pd.DataFrame) -> widgets.VBox:
    """The images left out, by reason, each with its figure and a button that counts from the next run of 03 on."""
    kinds = left_out["kind"].value_counts()
    sections = [_section(run, kind, left_out[left_out["kind"] == kind]) for kind in kinds.index]
    return widgets.VBox(sections or [widgets.Label("Nothing was left out.")])


def _section(run: Run, kind: str, images: pd.DataFrame) -> widgets.VBox:
    shown = images.head(MOST)
    title = f"{kind}: {len(images)}" + (f", {MOST} of them shown" if len(images) > MOST else "")
    cards = [_card(run, row) for row in shown.itertuples()]
    wrapped = widgets.Layout(display="flex", flex_flow="row wrap")
    return widgets.VBox([widgets.Label(title), widgets.Box(cards, layout=wrapped)])


def _card(run: Run, row: object) -> widgets.VBox:
    words = f"<b>{html.escape(row.file_name)}</b> {html.escape(row.reason)}"
    # a label would cut the reason off at the card's edge
    parts: list[widgets.Widget] = [
        widgets.HTML(f'<div style="line-height: 1.4; overflow-wrap: anywhere">{words}</div>')
    ]
    if (thumbnail := _thumbnail(run.image(row.file_name))) is not None:
        parts.insert(0, thumbnail)
    if row.kind not in FINAL:
        button = widgets.Button(description="take back")
        button.on_click(lambda pressed: _taken(pressed, run, row.file_name))
        parts.append(button)
    return widgets.VBox(parts, layout=widgets.Layout(width="340px", margin="4px"))


def _taken(button: widgets.Button, run: Run, file_name: str) -> None:
    take_back(run, file_name)
    button.description, button.disabled = "taken back", True


def _thumbnail(path: Path) -> widgets.Image | None:
    try:
        image = open_rgb(path)
    except OSError:
        return None
    image.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return widgets.Image(value=buffer.getvalue(), format="jpeg", width=image.width)


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
