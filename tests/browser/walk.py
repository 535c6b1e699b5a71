"""Run the five notebooks by hand, as it were: `make browser` drives JupyterLab in headless Chromium.

Wants Debian's `chromium`. Fails on a cell that errors, on an error in the browser's console, and if
the prompt box draws nothing; leaves a picture of every notebook in build/browser/.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from helpers.core.run import STAGES, notebook_name

OUT = Path("build/browser")
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code')
    .map(cell => [cell.model.executionCount, (cell.model.toJSON().outputs || [])
        .filter(output => output.output_type === 'error').map(output => output.evalue)])"""
READY = """() => { const shown = window.jupyterapp?.shell.currentWidget;
    return shown?.context?.isReady && shown.sessionContext?.session?.kernel?.status === 'idle'; }"""
# the badge is a picture on the web, which a machine without a network cannot load
HARMLESS = ("favicon", "ResizeObserver", "404 (Not Found)", "ERR_NAME_NOT_RESOLVED")


def serve(port: int) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--allow-root",
        "--no-browser",
        f"--port={port}",
    ]
    command += [
        "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
        "--ServerApp.disable_check_xsrf=True",
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
            return server
        except OSError:
            if time.monotonic() > deadline:
                server.kill()
                sys.exit("JupyterLab did not start within a minute")
            time.sleep(0.3)


def run_notebook(page: Page, address: str, limit_s: float) -> None:
    """Open a notebook, run all of its cells and wait for the last."""
    page.goto(address)
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    deadline = time.monotonic() + limit_s
    while True:
        cells = page.evaluate(CELLS)
        errors = [error for _, found in cells for error in found]
        if errors:
            sys.exit(f"{address}: {errors[0]}")
        if all(count for count, _ in cells):
            return
        if time.monotonic() > deadline:
            sys.exit(f"{address}: a cell still ran after {limit_s:.0f} s")
        page.wait_for_timeout(500)


def draw_in_the_prompt_box(page: Page) -> None:
    """Type a prompt, press Draw and wait for eight pictures: four of each model."""
    page.evaluate("jupyterapp.shell.currentWidget.content.widgets.at(-7).node.scrollIntoView()")
    box = page.locator("textarea[rows='2']").first
    box.scroll_into_view_if_needed()
    box.fill("a purple cat next to a yellow house at sunset")
    page.get_by_role("button", name="Draw").click()
    page.locator(".widget-html:has-text('Kept in')").first.wait_for(timeout=120_000)
    if page.locator(".widget-image").count() < 8:
        sys.exit("the prompt box shows fewer than eight pictures")
    page.wait_for_timeout(1000)
    box.scroll_into_view_if_needed()
    page.screenshot(path=OUT / "prompt-box.png")


def picture_of(page: Page, name: str, parts: int = 6) -> None:
    """Screenshots of a notebook from top to bottom."""
    for part in range(parts):
        page.evaluate(
            "([part, parts]) => { const list = jupyterapp.shell.currentWidget.content.widgets;"
            " list[Math.floor(part * list.length / parts)].node.scrollIntoView({block: 'start'}); }",
            [part, parts],
        )
        page.wait_for_timeout(700)
        page.screenshot(path=OUT / f"{name}-{part}.png")


@contextmanager
def jupyterlab(chromium: str, viewport: dict[str, int]) -> Iterator[tuple[Page, str]]:
    """A page of a headless browser and the address of JupyterLab's notebooks.

    Exits, on leaving, if the browser's console has an error.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = serve(port)
    complaints: list[str] = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport=viewport)
            page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
            yield page, f"http://127.0.0.1:{port}/lab/tree"
            browser.close()
    finally:
        server.terminate()
    real = [text for text in complaints if not any(word in text for word in HARMLESS)]
    if real:
        sys.exit("the browser's console: " + "\n".join(real[:5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--limit-s", type=float, default=600)
    args = parser.parse_args()
    with jupyterlab(args.chromium, {"width": 1280, "height": 1000}) as (page, tree):
        for stage in STAGES:
            name = notebook_name(stage)
            run_notebook(page, f"{tree}/notebooks/{name}.ipynb?reset", args.limit_s)
            if stage == "inference":
                draw_in_the_prompt_box(page)
            picture_of(page, name)
            print(f"{name}: ran without an error", flush=True)


if __name__ == "__main__":
    main()
