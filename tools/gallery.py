"""The README's pictures from the demo's run: `make gallery`, after `make demo`.

Before and after, the curve, the report's page and the prompt box go to assets/, each below 300 kB. The last two
are photographed in headless Chromium, and left as they are where there is none.
"""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image

from helpers.core.records import read_log
from helpers.core.run import Run
from helpers.figures.pictures import loss_curves, open_rgb

ASSETS = Path("assets")
MOST_BYTES = 300_000


def keep(image: Image.Image, name: str) -> None:
    """Write a picture into assets/: a JPEG as good as the bytes allow, a PNG of few colours."""
    path = ASSETS / name
    if path.suffix == ".png":
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    else:
        for quality in range(92, 40, -4):
            image.convert("RGB").save(path, quality=quality, optimize=True)
            if path.stat().st_size <= MOST_BYTES:
                break
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} has {path.stat().st_size / 1000:.0f} kB: make it smaller")
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


def photograph(run: Run, chromium: str) -> None:
    """The top of the report's page, and the prompt box after a drawing."""
    from playwright.sync_api import sync_playwright

    from tests.browser.box import number, open_box, press, says
    from tests.browser.walk import OUT, jupyterlab

    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1250})
        page.goto(run.report_html.resolve().as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=OUT / "report.png")
        browser.close()
    with jupyterlab(chromium, {"width": 1280, "height": 1400}) as (page, tree):
        open_box(page, f"{tree}/notebooks/05_inference.ipynb?reset")
        page.locator("textarea[rows='2']").first.fill(
            "a purple cat next to a yellow house at sunset"
        )
        number(page, "Pictures", "4")
        press(page, "Draw")
        says(page, "Base model, same seeds")
        page.wait_for_timeout(1000)
        page.evaluate("document.querySelectorAll('.Toastify').forEach(news => news.remove())")
        page.locator(".widget-vbox").first.screenshot(path=OUT / "prompt-box.png")
    for name in ("report", "prompt-box"):
        keep(open_rgb(OUT / f"{name}.png"), f"{name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    run = Run(args.run)
    keep(open_rgb(run.require(run.before_and_after, "inference")), "before-after.jpg")
    keep(loss_curves(read_log(run.train_log)), "curves.png")
    if args.chromium:
        photograph(run, args.chromium)
    else:
        print("no chromium: the pictures of the report and of the prompt box stay as they are")


if __name__ == "__main__":
    main()
