"""The notebooks' explaining figures are there, small, legible, and drawn by tools/figures."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from helpers.figures.explain import show_figure
from helpers.figures.pictures import GAP_PX, grid
from tools.figures import FIGURES
from tools.figures.__main__ import MAX_BYTES
from tools.figures.sheet import MIN_WORDS_PX, WIDTH_PX, Sheet

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "assets/figures"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEED_NO_MODEL = (
    *("01_stages", "01_carousel", "01_border", "01_damaged", "01_permission"),
    *("02_caption", "02_tokens", "02_cost", "03_reasons", "03_split"),
    *("04_lora", "04_batch", "04_curves", "04_snr"),
)


def named_in(text):
    """The figures that a notebook's text shows, by a call or by an address."""
    return set(re.findall(r"""(?:assets/figures/|show_figure\(["'])(\d\d_\w+)""", text))


def test_the_figures_in_assets_are_those_that_are_drawn():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.png" for name in FIGURES}


@pytest.mark.parametrize("name", FIGURES)
def test_a_committed_figure_is_a_small_png_on_white(name):
    path = FOLDER / f"{name}.png"
    image = Image.open(path)
    assert (image.format, image.mode, image.width) == ("PNG", "P", WIDTH_PX)
    assert path.stat().st_size <= MAX_BYTES
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", NEED_NO_MODEL)
def test_a_figure_drawn_again_looks_as_committed_and_no_words_meet(name):
    sheet, committed = FIGURES[name](), Image.open(FOLDER / f"{name}.png")
    drawn = sheet.image()
    assert not sheet.collisions() and drawn.size == committed.size
    apart = np.subtract(drawn.convert("RGB"), committed.convert("RGB"), dtype=np.float32)
    assert np.abs(apart).mean() < 3  # levels of 255: palettes of 64 and 128 colours are 2 apart


def test_words_that_meet_leave_the_sheet_or_are_too_small_are_found():
    sheet = Sheet(200)
    sheet.write(20, 50, "one")
    sheet.write(40, 55, "two")
    sheet.write(WIDTH_PX - 20, 120, "three")
    assert sheet.collisions() == ["'three' leaves the sheet", "'one' meets 'two'"]
    with pytest.raises(AssertionError):
        sheet.write(20, 150, "four", MIN_WORDS_PX - 1)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_figure_that_a_notebook_shows_is_there_and_its_own(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert not named_in(text) - set(FIGURES)
    assert all(name[:2] == path.name[:2] for name in named_in(text))


def test_a_figure_is_shown_from_wherever_a_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert show_figure("04_lora").size == Image.open(FOLDER / "04_lora.png").size
    assert show_figure("05_gone").height == 40  # a line that says so, and the notebook goes on


def test_a_figure_is_known_by_a_call_and_by_an_address():
    text = (
        'show_figure("04_gone")  # ![Noise](https://example.org/main/assets/figures/04_noise.png)'
    )
    assert named_in(text) == {"04_gone", "04_noise"}


@pytest.mark.parametrize(
    "name", ["2026-06-Juin-20260612-101500-Burst01_1.jpg", "写真" * 30], ids=ascii
)
def test_a_file_name_wider_than_its_cell_does_not_run_into_its_neighbours(name):
    cell_px, tile = 160, Image.new("RGB", (40, 40), "white")
    sheet = np.asarray(grid([tile, tile], 2, labels=[name, ""], cell_px=cell_px))
    assert (sheet[:, : GAP_PX + cell_px] < 128).any(), "the name is not drawn"
    assert (sheet[:, 2 * GAP_PX + cell_px :] == 255).all(), "the name stands in the next cell"
