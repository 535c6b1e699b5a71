"""An artist's folders through 01 to 03 by hand, as it were: `python -m tests.browser.folders`.

A phone's, a scanner's and kohya's (made_folders.py), each cell by cell in a real JupyterLab, with words typed into the
review table where the pictures have none. Fails if a picture of 03's dataset is not the one that its file shows, in its
colours and upright, or has another's caption. Leaves a picture of each notebook in build/browser/.
"""

import argparse
import io
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from helpers.core.decode import decode
from helpers.core.records import Post, latest, read_rows
from helpers.core.run import STAGES, Run, notebook_name
from helpers.core.suffix import strip_suffix
from helpers.dataset.dataset_files import read_records
from tests.browser import made_folders
from tests.browser.made_folders import Art, Made
from tests.browser.walk import OUT, READY, jupyterlab

KINDS = ("phone", "scanner", "kohya")
SUFFIX = " in a mira watercolor style"
SCREEN = {"width": 1180, "height": 3000}  # so high that a cell with what came out is seen whole
NODE = "jupyterapp.shell.currentWidget.content.widgets[i].node"
RUN_CELL = """async i => { const notebook = jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = i; await jupyterapp.commands.execute('notebook:run-cell');
    return notebook.widgets[i].model.toJSON().outputs
        .filter(output => output.output_type === 'error').map(output => output.evalue); }"""
CODE = """() => jupyterapp.shell.currentWidget.content.widgets
    .map((cell, i) => cell.model.type === 'code' ? i : -1).filter(i => i >= 0)"""


def notebook_for(stage: str, run: str, folder: Path) -> Path:
    """A copy of a notebook, beside it, with what an artist would type in."""
    text = Path(f"notebooks/{notebook_name(stage)}.ipynb").read_text(encoding="utf-8")
    typed = {
        'run = \\"demo\\"': f'run = \\"{run}\\"',
        'folder = \\"\\"': f'folder = \\"{folder}\\"',
    }
    typed |= {'source = \\"demo\\"': 'source = \\"folder\\"'}
    for before, after in typed.items():
        text = text.replace(before, after, 1)
    copy = Path(f"notebooks/{run}-{stage}.ipynb")
    copy.write_text(text, encoding="utf-8")
    return copy


def walk(page: Page, address: str, made: dict[str, Made] | None) -> Image.Image:
    """Run a notebook cell by cell; a picture of every cell below the settings.

    made  what to type into the review table, by file name; None where nothing is typed
    """
    page.goto(address)
    page.wait_for_function(READY, timeout=60_000)
    if (no_news := page.get_by_role("button", name="No", exact=True)).is_visible():
        no_news.click()  # JupyterLab's question whether to fetch its news
    shots = []
    for number, cell in enumerate(page.evaluate(CODE)):
        if errors := page.evaluate(RUN_CELL, cell):
            sys.exit(f"{address}: {errors[0]}")
        if number < 3:  # Setup and settings
            continue
        node = page.evaluate_handle(f"i => {NODE}", cell).as_element()
        node.scroll_into_view_if_needed()
        page.wait_for_timeout(1200)
        shots.append(node.screenshot())
        if made and node.query_selector(".widget-text input"):
            type_captions(page, made)
            shots.append(node.screenshot())
    return stacked([Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots])


def type_captions(page: Page, made: dict[str, Made]) -> None:
    """Type what each picture shows, page for page, until no row is left that wants words."""
    while True:
        fields, names = page.locator(".widget-text input"), page.locator(".widget-html b")
        for row in range(fields.count()):
            words = made[names.nth(row).inner_text()].caption
            if words and not fields.nth(row).input_value():
                fields.nth(row).fill(words)
                fields.nth(row).press("Enter")
                page.wait_for_timeout(300)
        forth = page.get_by_role("button", name="Next")
        if forth.is_disabled():
            return
        forth.click()
        page.wait_for_timeout(1000)


def stacked(shots: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(s.width for s in shots), sum(s.height + 8 for s in shots)), "red")
    top = 0
    for shot in shots:
        sheet.paste(shot, (0, top))
        top += shot.height + 8
    return sheet


def by_file_name(run: Run, root: Path, made: list[Made]) -> dict[str, Made]:
    """What was made, by the name that 01 gave it. Exits if a picture did not come in."""
    at = {m.path.relative_to(root).as_posix(): m for m in made}
    posts = latest(read_rows(run.posts, Post)).values()
    if missing := {name for name, m in at.items() if m.picture} - {p.source_name for p in posts}:
        sys.exit(f"{run.name}: not taken: {sorted(missing)}")
    if others := [p.source_name for p in posts if p.source_name not in at]:
        sys.exit(f"{run.name}: taken though it is no art: {others}")
    return {post.file_name: at[post.source_name] for post in posts}


def check(run: Run, made: dict[str, Made]) -> int:
    """Compare 03's dataset with what was made; how many pictures it has."""
    records = read_records(run.dataset)
    for record in records:
        meant = made[record.image]
        shown = decode(run.dataset / record.split / record.file_name).image
        if meant.picture is None:
            sys.exit(f"{record.image} is in the dataset though it is no art")
        if (apart := levels_apart(shown, meant.picture)) > meant.tolerance:
            sys.exit(f"{record.image} is not as it was made: {apart:.1f} levels apart")
        if strip_suffix(record.text, SUFFIX).strip() != meant.caption.strip():
            sys.exit(f"{record.image} says {record.text!r}, not {meant.caption!r}")
    return len(records)


def levels_apart(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures at 64 x 64, of 255; 255 where their shapes differ."""
    if abs(one.width / one.height - other.width / other.height) > 0.02:
        return 255.0
    small = [
        np.asarray(i.convert("RGB").resize((64, 64), Image.Resampling.BOX), float)
        for i in (one, other)
    ]
    return float(np.abs(small[0] - small[1]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    parser.add_argument("--art", type=Path, help="a folder of pictures to take for the painter's")
    parser.add_argument("kinds", nargs="*", default=KINDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, jupyterlab(args.chromium, SCREEN) as (page, tree):
        for kind in args.kinds:
            root, run = Path(place, kind), Run(f"folder-{kind}")
            shutil.rmtree(run.folder, ignore_errors=True)
            art = Art(20 * KINDS.index(kind), args.art)
            made = list(getattr(made_folders, kind)(root, art))
            names: dict[str, Made] = {}
            for stage in STAGES[:3]:
                copy = notebook_for(stage, run.name, root)
                try:
                    typed = names if stage == "caption" and kind != "kohya" else None
                    sheet = walk(page, f"{tree}/{copy.as_posix()}?reset", typed)
                finally:
                    copy.unlink()
                sheet.save(OUT / f"{kind}-{notebook_name(stage)}.png")
                names = names or by_file_name(run, root, made)
            print(
                f"{kind}: {check(run, names)} of {len(made)} files are in the dataset, as they were made"
            )


if __name__ == "__main__":
    main()
