"""Drive 05's prompt box in JupyterLab by headless Chromium, on a run that is there: `python -m tests.browser.box`.

Runs the cells that load the model and show the grid, the blind check and the box, then as a person does: types a prompt
and draws, beside the base model; cancels a drawing of sixty steps; brings an old picture's settings back and draws it
again; uploads a picture and draws all of it anew, a rectangle, and what a mask shows; redraws one from its PNG; picks
in the blind check. Fails on an error in a cell or in the browser's console; leaves pictures in build/browser/.

For ipywidgets 7.7 run it by a Python that has JupyterLab 3 and that version, and the rest from .venv.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import ipywidgets
import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import Page

from helpers.core.run import Run
from helpers.figures.pictures import open_rgb
from tests.browser.walk import CELLS, OUT, READY, jupyterlab

NEEDED = (
    "from helpers.mirror.sync",
    "Sampler(here",
    "from tqdm",
    "plan_grids(",
    "BlindBox(",
    "PromptBox(",
)
PHONE = {"width": 390, "height": 844}
NARROW = """async () => { const commands = jupyterapp.commands;
    await commands.execute('application:toggle-left-area');
    for (const side of ['left', 'right'])
        if (commands.hasCommand('application:toggle-side-tabbar'))
            await commands.execute('application:toggle-side-tabbar', {side}); }"""
REDRAW = """from PIL import Image
import numpy as np
path = max(here.samples.glob('*.png'), key=lambda p: p.stat().st_mtime_ns)
assert np.array_equal(sampler.redraw(path), Image.open(path))
print('the same', 'bits')"""
RUN_CODE = """async ([code]) => { await jupyterapp.commands.execute('notebook:insert-cell-below');
    const shared = jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel;
    shared.setSource(code);
    await jupyterapp.commands.execute('notebook:run-cell'); }"""
RUN_CELL = """async ([part]) => { const panel = jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets;
    panel.content.activeCellIndex = cells.findIndex(cell => cell.model.type === 'code'
        && cell.model.sharedModel.source.includes(part));
    await jupyterapp.commands.execute('notebook:run-cell'); }"""
PATIENCE_MS = 300_000


def open_box(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function(READY, timeout=PATIENCE_MS)
    page.evaluate(
        "jupyterapp.commands.execute('docmanager:toggle-autosave')"
    )  # the notebook has no outputs
    for part in ("@title Setup", 'run = "demo"', *NEEDED):
        page.evaluate(RUN_CELL, [part])
    errors = [error for _, found in page.evaluate(CELLS) for error in found]
    if errors:
        sys.exit(errors[0])
    page.locator("textarea[rows='2']").first.wait_for(timeout=PATIENCE_MS)


def press(page: Page, name: str) -> None:
    page.locator(f"button.jupyter-button:text-is('{name}')").first.click()


def upload(page: Page, button: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(f"button.jupyter-button:has-text('{button}')").first.click()
    chooser.value.set_files(path)


def choose(page: Page, label: str, option: str) -> None:
    page.locator(f".jupyter-widgets:has(> label:text-is('{label}')) select").select_option(
        label=option
    )


def says(page: Page, words: str) -> None:
    page.locator(f".widget-html:has-text('{words}')").first.wait_for(timeout=PATIENCE_MS)


def number(page: Page, label: str, value: str) -> None:
    """Type into a slider's read-out or a field, found by its label."""
    field = page.locator(f".jupyter-widgets:has(> label:text-is('{label}'))").first
    readout = field.locator(".widget-readout")
    if readout.count():
        readout.click()
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
        page.keyboard.press("Enter")
    else:
        field.locator("input").fill(value)
        field.locator("input").press("Enter")


def drive(page: Page) -> None:
    prompt = page.locator("textarea[rows='2']").first
    prompt.fill("a purple cat next to a yellow house at sunset")
    number(page, "Steps", "4")
    number(page, "Pictures", "2")
    press(page, "Draw")
    says(page, "Kept in")
    says(page, "Base model, same seeds")
    picture(page, "box-drawn")

    number(page, "Steps", "60")
    press(page, "Draw")
    says(page, "Drawing")
    page.wait_for_timeout(300)
    press(page, "Cancel")
    says(page, "Cancelled.")
    picture(page, "box-cancelled")

    prompt.fill("something else")
    page.locator("button:has-text('tuned ')").first.click()
    says(page, "Settings brought back.")
    if prompt.input_value() != "a purple cat next to a yellow house at sunset":
        sys.exit(f"history brought back {prompt.input_value()!r}")
    press(page, "Draw")
    says(page, "Kept in")
    picture(page, "box-restored")


def newest() -> Path:
    return max(Run("demo").samples.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)


def drive_pictures(page: Page, folder: Path) -> None:
    """Draw from an upload: all of it, a rectangle, what a mask shows; and what is no picture."""
    art = open_rgb(sorted(Run("demo").split_images("validation"))[0])
    art.save(folder / "art.jpg")
    mask = Image.new("L", art.size)
    ImageDraw.Draw(mask).ellipse((0, 0, *art.size), 255)
    mask.save(folder / "mask.png")
    Image.new("RGB", (10_000, 6_000), "#7090a0").save(folder / "wide.png")
    (folder / "notes.txt").write_text("no picture")

    page.locator(":text-is('From a picture')").last.click()
    number(page, "Pictures", "1")
    number(page, "Steps", "12")
    page.locator("input[type=checkbox]").nth(2).uncheck()  # base model beside it
    upload(page, "Upload a picture", folder / "notes.txt")
    says(page, "notes.txt is no JPEG")
    upload(page, "Upload a picture", folder / "wide.png")
    says(page, "wide.png is taken: 10000 x 6000 px")
    upload(page, "Upload a picture", folder / "art.jpg")
    says(page, "art.jpg is taken")
    draw(page, "box-from-picture")

    choose(page, "Draw anew", "a rectangle")
    draw(page, "box-rectangle")
    start = np.asarray(open_rgb(folder / "art.jpg").resize(open_rgb(newest()).size))
    changed = (np.abs(np.asarray(open_rgb(newest()), int) - start) > 0).any(-1)
    if changed[: len(changed) // 4 - 1].any() or not changed.any():
        sys.exit("outside the rectangle, pixels are not the original's")

    choose(page, "Draw anew", "what a mask shows")
    upload(page, "Upload a mask", folder / "mask.png")
    says(page, "mask.png is taken as the mask.")
    draw(page, "box-mask")
    page.evaluate(RUN_CODE, [REDRAW])
    page.locator(".jp-OutputArea-output:has-text('the same bits')").first.wait_for(
        timeout=PATIENCE_MS
    )

    press(page, "Without a picture")
    bytes_before = newest().read_bytes()
    page.locator("button:has-text('tuned ')").first.click()
    says(page, "Settings brought back.")
    draw(page, "box-mask-again")
    if newest().read_bytes() != bytes_before:
        sys.exit("a restored picture is drawn otherwise")


def draw(page: Page, name: str) -> None:
    before = newest().stat().st_mtime_ns
    press(page, "Draw")
    while newest().stat().st_mtime_ns == before:  # the message may have gone before anyone looks
        page.wait_for_timeout(50)
    says(page, "Kept in")
    picture(page, name)


def check_blindly(page: Page) -> None:
    picks = Run("demo").blind
    before = len(picks.read_text().splitlines()) if picks.is_file() else 0
    press(page, "Begin")
    says(page, f"{before + 1} of 20. Which one")
    page.locator("button:text-is('Begin')").scroll_into_view_if_needed()
    page.screenshot(path=OUT / "box-blind.png")
    press(page, "Left")
    says(page, f"{before + 2} of 20. Which one")


def picture(page: Page, name: str) -> None:
    page.locator("textarea[rows='2']").first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=OUT / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    if not Path("runs/demo/model").is_dir():
        sys.exit("runs/demo is missing: run make demo first")
    with jupyterlab(args.chromium, {"width": 1280, "height": 1400}) as (page, tree):
        open_box(page, f"{tree}/notebooks/05_inference.ipynb?reset")
        drive(page)
        with tempfile.TemporaryDirectory() as folder:
            drive_pictures(page, Path(folder))
        check_blindly(page)
        page.set_viewport_size(PHONE)
        page.evaluate(NARROW)
        picture(page, "box-phone")
    print(
        f"ipywidgets {ipywidgets.__version__}:",
        "the prompt box: drawn, cancelled, brought back, drawn again; no error in the console",
    )


if __name__ == "__main__":
    main()
