"""Drive the review table of 02 by hand, as it were: `python -m tests.browser.review` in headless Chromium.

Runs 02 on the demo in a real JupyterLab, mends a caption by keyboard, accepts one, filters and turns a page,
then restarts the kernel, runs all again and looks whether the edit is there. Leaves pictures in build/browser/.
"""

import argparse
import shutil
import sys
from pathlib import Path

import papermill
from playwright.sync_api import Page

from helpers.core.records import Caption, append_row, latest, read_rows
from helpers.core.run import Run
from tests.browser.walk import OUT, jupyterlab, run_notebook

RUN = "review-walk"
WORDS = "a cat that was mended in a browser & <b>kept</b>"
COPY = Path(
    "notebooks/review-walk.ipynb"
)  # beside the others, since a notebook finds the root above it
RESTART = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
SCREEN = {"width": 1280, "height": 1000}


def prepare() -> Run:
    """A run of the demo that has captions, some of which want a look."""
    run = Run(RUN)
    shutil.rmtree(run.folder, ignore_errors=True)
    given = {"run": RUN, "more": {"demo_posts": 12}}
    papermill.execute_notebook("notebooks/01_scrape.ipynb", None, given, progress_bar=False)
    given = {"run": RUN}
    papermill.execute_notebook("notebooks/02_caption.ipynb", None, given, progress_bar=False)
    for row in list(latest(read_rows(run.captions, Caption)).values())[:3]:
        spoilt = Caption(row.file_name, f"a cartoon of {row.caption}", "ok", "claude")
        append_row(run.captions, spoilt)
    return run


def show_table(page: Page) -> None:
    """Scroll to the table and wait for its first picture."""
    page.evaluate("jupyterapp.shell.currentWidget.content.widgets.at(-5).node.scrollIntoView()")
    page.locator(".widget-dropdown select").first.wait_for(timeout=60_000)
    page.locator(".widget-image").first.wait_for(timeout=60_000)
    page.locator(".widget-dropdown select").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)


def field(page: Page, number: int):
    return page.locator(".widget-text input[type='text']").nth(number)


def mend(page: Page, run: Run) -> str:
    """Type over the first caption and press Enter, accept the second with the keyboard; the first one's name."""
    names = list(latest(read_rows(run.captions, Caption)))
    show_table(page)
    page.screenshot(path=OUT / "review-1-opened.png")
    field(page, 0).click()
    page.keyboard.press("Control+a")
    page.keyboard.type(WORDS)
    page.keyboard.press("Enter")
    page.wait_for_timeout(1500)
    field(page, 1).click()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.wait_for_timeout(1500)
    page.screenshot(path=OUT / "review-2-mended.png")
    return names[0]


def check_kept(run: Run, name: str) -> None:
    rows = latest(read_rows(run.captions, Caption))
    edited = [row for row in rows.values() if row.status == "edited"]
    if rows[name].caption != WORDS or len(edited) != 2:
        sys.exit(f"not kept as typed: {rows[name]}, {len(edited)} edited")
    every = [row.caption for row in read_rows(run.captions, Caption) if row.file_name == name]
    if len(every) != 3:
        sys.exit(f"the captioner's words were written over: {every}")


def look_after_a_rerun(page: Page, run: Run, address: str, limit_s: float) -> None:
    """Restart the kernel, run the notebook anew, choose all captions, find the edit, turn the page."""
    page.evaluate(RESTART)
    page.goto("about:blank")
    run_notebook(page, address, limit_s)
    show_table(page)
    page.locator(".widget-dropdown select").first.select_option(label="all captions")
    page.wait_for_timeout(1500)
    if field(page, 0).input_value() != WORDS:
        sys.exit(f"after a rerun the table shows {field(page, 0).input_value()!r}")
    page.locator(".widget-dropdown select").first.scroll_into_view_if_needed()
    page.screenshot(path=OUT / "review-3-after-a-rerun.png")
    page.get_by_role("button", name="Next").click()
    page.wait_for_timeout(1500)
    page.screenshot(path=OUT / "review-4-next-page.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--limit-s", type=float, default=300)
    args = parser.parse_args()
    run = prepare()
    text = Path("notebooks/02_caption.ipynb").read_text(encoding="utf-8")
    COPY.write_text(text.replace('run = \\"demo\\"', f'run = \\"{RUN}\\"'), encoding="utf-8")
    try:
        with jupyterlab(args.chromium, SCREEN) as (page, tree):
            address = f"{tree}/{COPY.as_posix()}?reset"
            run_notebook(page, address, args.limit_s)
            name = mend(page, run)
            check_kept(run, name)
            look_after_a_rerun(page, run, address, args.limit_s)
            check_kept(run, name)
    finally:
        COPY.unlink()
    print(f"an edit was made, kept and found again after a rerun; pictures in {OUT}")


if __name__ == "__main__":
    main()
