"""02 and 03 by hand: cells run again, left out, out of order and with other settings, in a real kernel."""

import hashlib
import json
import random
from collections import Counter

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.core.records import Caption, Post, caption_costs, latest, read_rows
from helpers.core.run import Run, notebook_name
from helpers.core.suffix import strip_suffix
from helpers.dataset.dataset_files import read_about, read_records
from tests.conftest import ROOT, lines
from tests.loopback_claude import caption_of, numbered_picture
from tests.test_claude import name_of

EDIT = """
from helpers.caption.ledger import edit
from helpers.core.records import Caption, latest, read_rows
from helpers.core.run import Run
rows = latest(read_rows(Run("{run}").captions, Caption))
row = rows.get("{name}")
if row and row.is_usable: edit(Run("{run}"), row, "words of mine number {number}")
"""


def cells_of(stage: str) -> list[str]:
    notebook = nbformat.read(ROOT / "notebooks" / f"{notebook_name(stage)}.ipynb", as_version=4)
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def settings(**given) -> str:
    return "\n".join(f"{name} = {value!r}" for name, value in given.items())


def run_cells(sources: list[str], place) -> list[str]:
    """Run code in one kernel, going on after errors as a person does; the names of the errors, and what was printed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, resources=resources
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    errors = [o for o in outputs if o.output_type == "error"]
    # a cell that was left out leaves a name undefined; all else is a line that says what to do
    others = {o.ename: o.evalue for o in errors if o.ename not in ("RunError", "NameError")}
    assert not others, others
    return [o.evalue for o in errors]


def make_run(count: int, name: str, first: int = 0) -> Run:
    """A run as 01 leaves it, of pictures that say their own number."""
    run = Run(name)
    rows = []
    for number in range(count):
        path = numbered_picture(run.image(name_of(number)), first + number)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append(
            Post(name_of(number), f"p-{number:05d}", 1, "", "", "", 64, 64, digest, "own work")
        )
    run.posts.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return run


def test_a_cell_that_runs_before_those_above_it_says_so_in_a_line(workplace):
    fault = "import helpers.core.text as t; exec('def f(): return missing', vars(t)); t.f()"
    sources = [cells_of("scrape")[0], "print(offered)", fault]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    resources = {"metadata": {"path": str(workplace)}}
    NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, resources=resources
    ).execute()
    early, ours = (cell.outputs[-1] for cell in notebook.cells[1:])
    assert (early.ename, early.evalue) == ("NameError", "name 'offered' is not defined")
    assert len(early.traceback) == 1 and "run the cells above first" in early.traceback[0]
    assert ours.evalue == "name 'missing' is not defined" and len(ours.traceback) > 1
    assert "run the cells above" not in "".join(ours.traceback)


# 02


def caption_cells(order: list, **more) -> list[str]:
    """Setup, settings and config of 02, then cells by their place, or code as it stands."""
    cells = cells_of("caption")
    parameters = settings(
        run="art", captioner="claude", model="claude-haiku-5-5", mode="now", budget_usd=5.0,
        banned_words="", review=True, more={"retry_wait_s": 0.0, "poll_s": 0.0, **more},
    )  # fmt: skip
    return [cells[0], parameters, cells[2], *(cells[s] if type(s) is int else s for s in order)]


LIST, PRICE, TRY, ALL, TABLE, PROBLEMS, REVIEW, END = range(3, 11)


def mend(number: int, run: str = "art") -> str:
    return EDIT.format(run=run, name=name_of(number), number=number)


def assert_nothing_lost_or_paid_twice(claude, mended: set[int], count: int) -> None:
    """Every image was asked about once at most, has its own words, or those of a person where there are any."""
    run = Run("art")
    rows = latest(read_rows(run.captions, Caption)) if run.captions.exists() else {}
    assert max(Counter(charge.number for charge in claude.bill).values(), default=0) <= 1
    assert caption_costs(run.captions)[0] == pytest.approx(claude.billed_usd, rel=1e-9)
    for number in range(count):
        row = rows.get(name_of(number))
        if row is not None:
            was_mended = any(
                line["file_name"] == name_of(number) and line["status"] == "edited"
                for line in lines(run.captions)
            )
            assert not was_mended or number in mended
            words = f"words of mine number {number}" if was_mended else caption_of(number)
            assert row.caption == words


ORDERS = {
    "again": [LIST, PRICE, TRY, ALL, mend(1), ALL, TRY, ALL, mend(5), LIST, PRICE, TRY, ALL, END],
    "left out": [LIST, ALL, TRY, mend(1), ALL, PRICE, PROBLEMS, REVIEW, mend(5), TABLE, ALL, END],
    "backwards": [
        END,
        ALL,
        TRY,
        PRICE,
        LIST,
        TRY,
        mend(1),
        TRY,
        LIST,
        ALL,
        mend(5),
        ALL,
        LIST,
        END,
    ],
}


@pytest.mark.parametrize("order", ORDERS)
def test_cells_of_02_in_any_order_lose_nothing_and_pay_nothing_twice(claude, workplace, order):
    make_run(6, "art")
    run_cells(caption_cells(ORDERS[order]), workplace)
    assert_nothing_lost_or_paid_twice(claude, {1, 5}, 6)
    rows = latest(read_rows(Run("art").captions, Caption))
    assert len(claude.bill) == 6 and {n for n, row in rows.items() if row.status == "edited"} == {
        name_of(1), name_of(5),
    }  # fmt: skip


def test_a_list_of_another_run_is_captioned_for_none(claude, workplace):
    """The settings cell is run for another run, and the cell that lists its images is not."""
    make_run(4, "art")
    make_run(4, "other", first=50)
    other = caption_cells([])[1].replace("'art'", "'other'")
    config = cells_of("caption")[2]
    errors = run_cells(
        caption_cells([LIST, other, config, TRY, ALL, LIST, TRY, ALL, END]), workplace
    )
    assert (
        len(errors) == 1
        and "run the cell that lists the images without a caption again" in errors[0]
    )
    assert {charge.number for charge in claude.bill} == {50, 51, 52, 53} and len(claude.bill) == 4
    assert not Run("art").captions.exists()


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_random_orders_of_02_lose_nothing_and_pay_nothing_twice(claude, workplace, seed):
    rng, count = random.Random(seed), 8
    make_run(count, "art")
    order = [rng.choice([LIST, PRICE, TRY, ALL, ALL, TABLE, END, "mend"]) for _ in range(25)]
    mended = set()
    for i, step in enumerate(order):
        if step == "mend":
            number = rng.randrange(count)
            mended.add(number)
            order[i] = mend(number)
    run_cells(caption_cells(order), workplace)
    assert_nothing_lost_or_paid_twice(claude, mended, count)


# 03


def dataset_cells(order: list, **given) -> list[str]:
    cells = cells_of("dataset")
    parameters = {
        "run": "art",
        "suffix": " in a mira style",
        "validation_share": 0.2,
        "min_side_px": 32,
    }
    parameters |= {"seed": 0, "push_to": "", "private": True, "more": {"max_hash_bits": 0}}
    start = [settings(**parameters | given), cells[2]]
    return [cells[0], *start, *(cells[s] if type(s) is int else s for s in order)]


IN, CHOOSE, COPIES, SPLIT, TEXTS, WRITE, OUT, PUBLISH, CHECK = range(3, 12)


def change(**given) -> list[str]:
    """Other settings, and their cell run again."""
    return dataset_cells([], **given)[1:]


def captioned(name: str, first: int = 0) -> Run:
    run = make_run(12, name, first)
    rows = [Caption(name_of(n), f"{caption_of(first + n)}", "ok", "claude") for n in range(12)]
    run.captions.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    return run


def assert_whole(run: Run) -> None:
    """A dataset holds its own run's images, words that this image had, and one suffix, that of its settings."""
    if not run.dataset.exists():
        return
    suffix = read_about(run.dataset)["settings"]["suffix"]
    posts = latest(read_rows(run.posts, Post))
    had = {(row.file_name, row.caption) for row in read_rows(run.captions, Caption)}
    for record in read_records(run.dataset):
        assert record.sha256 == posts[record.image].sha256
        assert record.text.count(suffix) == 1 and record.text.endswith(suffix)
        assert (record.image, strip_suffix(record.text, suffix)) in had


def test_cells_of_03_out_of_order_mix_no_settings_and_no_runs(workplace):
    run, other = captioned("art"), captioned("other", first=50)
    errors = run_cells(
        dataset_cells(
            [
                *(WRITE, CHOOSE, TEXTS, WRITE, SPLIT, mend(3), TEXTS, WRITE, CHECK),
                *change(min_side_px=48),
                *(WRITE, CHECK),
                *change(run="other"),
                *(WRITE, SPLIT, WRITE, CHOOSE, SPLIT, WRITE, CHECK),
                *change(suffix=" in another style"),
                *(WRITE, CHOOSE, SPLIT, WRITE, CHECK),
            ]
        ),
        workplace,
    )
    reasons = [
        "name 'build' is not defined",
        "no column split: run the cell 'One post, one side' first",
        "name 'build' is not defined",
        "min_side_px changed since the images were chosen",
        *["_1.jpg has changed since the images were chosen: run the cell"] * 3,
    ]
    assert len(errors) == len(reasons)
    assert all(reason in error for reason, error in zip(reasons, errors, strict=True)), errors
    assert_whole(run)
    assert_whole(other)
    assert read_about(run.dataset)["settings"]["suffix"] == " in another style"
    assert "words of mine number 3 in another style" in {r.text for r in read_records(run.dataset)}


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_random_orders_of_03_mix_no_settings_and_no_runs(workplace, seed):
    rng = random.Random(seed)
    runs = [captioned("art"), captioned("other", first=50)]
    order: list = []
    for _ in range(25):
        step = rng.choice(
            [CHOOSE, CHOOSE, SPLIT, SPLIT, TEXTS, WRITE, WRITE, CHECK, "mend", "change"]
        )
        if step == "mend":
            order.append(mend(rng.randrange(12), rng.choice(("art", "other"))))
        elif step == "change":
            given = {"run": rng.choice(("art", "other")), "min_side_px": rng.choice((32, 48))}
            order += change(**given, suffix=rng.choice((" in a mira style", " in another style")))
        else:
            order.append(step)
    run_cells(dataset_cells(order), workplace)
    for run in runs:
        assert_whole(run)
