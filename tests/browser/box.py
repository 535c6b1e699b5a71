"""Drive 05's prompt box in JupyterLab by headless Chromium, on a run that is there: `python -m tests.browser.box`.

Runs the cells that load the model and show the box, then as a person does: types a prompt and draws, beside the
base model; cancels a drawing of sixty steps; brings an old picture's settings back and draws it again. Fails on
an error in a cell or in the browser's console; leaves pictures in build/browser/.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page

from tests.browser.walk import CELLS, OUT, READY, jupyterlab

NEEDED = ("from helpers.mirror.sync", "Sampler(here", "PromptBox(")
RUN_CELL = """async ([part]) => { const panel = jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets;
    panel.content.activeCellIndex = cells.findIndex(cell => cell.model.type === 'code'
        && cell.model.sharedModel.source.includes(part));
    await jupyterapp.commands.execute('notebook:run-cell'); }"""
PATIENCE_MS = 300_000


def open_box(page: Page, address: str) -> None:
    page.goto(address)
    page.wait_for_function(READY, timeout=PATIENCE_MS)
    for part in ("@title Setup", 'run = "demo"', *NEEDED):
        page.evaluate(RUN_CELL, [part])
    errors = [error for _, found in page.evaluate(CELLS) for error in found]
    if errors:
        sys.exit(errors[0])
    page.locator("textarea[rows='2']").first.wait_for(timeout=PATIENCE_MS)


def press(page: Page, name: str) -> None:
    page.locator(f"button.jupyter-button:has-text('{name}')").first.click()


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
    print("the prompt box: drawn, cancelled, brought back, drawn again; no error in the console")


if __name__ == "__main__":
    main()
