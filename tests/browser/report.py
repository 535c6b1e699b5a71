"""Look at report.html as a person would: `python -m tests.browser.report runs/demo/report.html axe.min.js`.

Opens the page from disk in headless Chromium, on a phone and on a desk, in light and in dark; fails on any
request that leaves the page, on an error in the console, on a page wider than its window, on a word of a table's
head that is broken within, on settings that are not printed, and on a serious finding of axe-core (npm pack
axe-core). Leaves pictures in build/browser/.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

OUT = Path("build/browser")
WINDOWS = {"phone": (390, 844), "desk": (1280, 900)}
GRAVE = ("serious", "critical")
BROKEN_WORDS = """[...document.querySelectorAll('th')].flatMap(cell => {
    const text = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode();
    return text ? [...text.data.matchAll(/[^\\s-]+/g)].filter(word => {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        return range.getClientRects().length > 1;
    }).map(word => word[0]) : []; })"""
NOT_PRINTED = """[...document.querySelectorAll('details')].filter(
    details => details.lastElementChild.getBoundingClientRect().height === 0
).map(details => details.innerText)"""


def look(browser: Browser, page_file: Path, axe: Path, window: str, scheme: str) -> list[str]:
    """What is wrong with the page in this window and colour scheme."""
    width, height = WINDOWS[window]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    found: list[str] = []
    page.on(
        "request", lambda r: found.append(r.url) if r.url[:5] not in ("file:", "data:") else None
    )
    page.on("console", lambda m: found.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.goto(page_file.resolve().as_uri())
    page.wait_for_load_state("networkidle")
    slider = page.locator(".slider input").first
    slider.fill("20")
    if page.locator(".slider").first.evaluate("e => e.style.getPropertyValue('--at')") != "20%":
        found.append("the before/after slider does not move")
    page.screenshot(path=OUT / f"report-{window}-{scheme}.png", full_page=True)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        found.append(f"wider than {width} px")
    page.emulate_media(media="print")
    found += [f"{words!r} is not printed" for words in page.evaluate(NOT_PRINTED)]
    page.emulate_media(media="screen")
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found += [f"{word!r} is broken within" for word in page.evaluate(BROKEN_WORDS)]
    page.add_script_tag(path=axe)
    violations = page.evaluate("axe.run().then(result => result.violations)")
    found += [
        f"axe {v['impact']}: {v['id']}, {v['help']}: {v['nodes'][0]['html'][:120]}"
        for v in violations
        if v["impact"] in GRAVE
    ]
    print(f"{window}, {scheme}: {len(violations)} findings of axe-core, {len(found)} that count")
    page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("axe", type=Path, help="axe.min.js of the npm package axe-core")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    args = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        found = [
            f"{window}, {scheme}: {what}"
            for window in WINDOWS
            for scheme in ("light", "dark")
            for what in look(browser, args.page, args.axe, window, scheme)
        ]
        browser.close()
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
