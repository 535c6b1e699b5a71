"""Notebooks by hand: cells of 01 to 03 rerun, skipped, out of order, after errors and restarts, in real kernels.

Two runs, each with a folder and a permission of its own. Whatever is pressed in whatever order: no picture comes
into the other run or under the other's permission, no edit is lost, and no picture is paid for twice.
"""

import random
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from helpers.caption.ledger import edit
from helpers.config import DatasetConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.files import sha256
from helpers.core.records import Caption, Post, latest, present, read_rows
from helpers.core.run import STAGES, Run, notebook_name
from helpers.dataset.build import build
from helpers.dataset.curate import curate
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import split
from helpers.scrape.ingest import ingest, list_items
from tests.conftest import make_dataset, photograph
from tests.loopback_claude import numbered_picture

FOLDERS = {"a": "own work", "b": "private study"}
LENIENT = {"max_text_share": 1.0, "max_hash_bits": 0, "max_oddness": 1e6, "min_brightness": 0.0}
# what a cell may end with: a line that says what to do, or that a cell above was passed over
TOLD = ("RunError", "NameError")


def settings(stage, name):
    """What a person types into the parameters of a notebook for the run `name`; `name` may be mistyped."""
    folder = f"art {name}"
    return {
        "scrape": {"run": name, "source": "folder", "folder": folder, "permission": FOLDERS[name]},
        "caption": {"run": name, "captioner": "claude", "more": {"price_usd": (0.1, 0.5)}},
        "dataset": {"run": name, "more": LENIENT},
    }[stage]


MISTYPED = {
    "scrape": ({"folder": "no such folder"}, {"permission": "mine"}, {"since": "x"}, {"max_posts": -1}),
    "caption": ({"budget_usd": -1.0}, {"more": {"guide": "x"}}),
    "dataset": ({"validation_share": 7.0}, {"suffix": "no space"}),
}  # fmt: skip


class Notebook:
    """A notebook that is open in a kernel of its own."""

    def __init__(self, stage):
        self.stage = stage
        path = f"notebooks/{notebook_name(stage)}.ipynb"
        cells = nbformat.read(path, as_version=4).cells
        self.cells = [cell.source for cell in cells if cell.cell_type == "code"]
        self.manager, self.client = start_new_kernel(cwd=str(Path.cwd()))
        self.values = {}
        self.run(self.cells[0])

    def run(self, code):
        """The kind of error that a cell ends with, and its words; empty if it goes well."""
        # a cell that is pressed after an error runs, as one by one they do
        reply = self.client.execute(code, reply=True, timeout=60, stop_on_error=False)["content"]
        assert reply["status"] in ("ok", "error")
        return (reply["ename"], reply["evalue"]) if reply["status"] == "error" else ("", "")

    def press(self, number):
        code = self.cells[number]
        if number == 1:  # the parameters, as they are typed over
            code += "".join(f"\n{name} = {value!r}" for name, value in self.values.items())
        error, words = self.run(code)
        assert error in ("", *TOLD), f"cell {number} of {self.stage}: {error}: {words}\n{code}"
        return error

    def press_all(self, first=1, last=None):
        """As Run All does: what follows an error is not run. Returns the error."""
        for number in range(first, last or len(self.cells)):
            if error := self.press(number):
                return f"{error} in cell {number} of {self.stage}"
        return ""

    def restart(self):
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(timeout=60)
        self.run(self.cells[0])

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Person:
    """Presses cells at random, types settings right and wrong, adds pictures, mends captions."""

    def __init__(self, notebooks, server, seed):
        self.notebooks, self.server, self.rng = notebooks, server, random.Random(seed)
        self.edited: dict[tuple[str, str], str] = {}
        self.numbers = {"a": 6, "b": 6}

    def type_settings(self):
        notebook = self.rng.choice(self.notebooks)
        notebook.values = settings(notebook.stage, self.rng.choice("ab"))
        if self.rng.random() < 0.2:
            notebook.values |= self.rng.choice(MISTYPED[notebook.stage])
        notebook.press(1)
        if self.rng.random() < 0.8:
            notebook.press(2)

    def press_one(self):
        notebook = self.rng.choice(self.notebooks)
        notebook.press(self.rng.randrange(1, len(notebook.cells)))

    def press_some(self):
        notebook = self.rng.choice(self.notebooks)
        first, last = sorted(self.rng.choices(range(1, len(notebook.cells) + 1), k=2))
        notebook.press_all(first, last)

    def press_from_the_settings_on(self):
        self.rng.choice(self.notebooks).press_all()

    def restart(self):
        self.rng.choice(self.notebooks).restart()

    def add_picture(self):
        name = self.rng.choice("ab")
        self.numbers[name] += 1
        put(name, self.numbers[name])

    def mend_caption(self):
        run = Run(self.rng.choice("ab"))
        rows = [row for row in latest(read_rows(run.captions, Caption)).values() if row.is_usable]
        if rows:
            row = self.rng.choice(rows)
            self.edited[run.name, row.file_name] = words = f"mended {self.rng.randrange(10**6)}"
            edit(run, row, words)

    WAYS = (
        *[type_settings] * 3,
        *[press_one] * 4,
        *[press_some] * 4,
        *[press_from_the_settings_on] * 3,
        *[mend_caption] * 2,
        add_picture,
    )

    def check(self):
        for name, permission in FOLDERS.items():
            run, other = Run(name), Path(f"art {name}")
            theirs = {sha256(path) for path in other.glob("*.png")}
            posts = latest(read_rows(run.posts, Post)).values()
            assert {post.sha256 for post in posts} <= theirs
            assert {post.permission for post in posts} <= {permission}
            assert len({post.sha256 for post in posts}) == len(posts)
            rows = latest(read_rows(run.captions, Caption))
            for (of, file_name), words in self.edited.items():
                assert of != name or rows[file_name].caption == words
            for record in read_records(run.dataset):
                assert record.sha256 in theirs and record.permission == permission
        paid = Counter(charge.number for charge in self.server.bill)
        assert not paid or max(paid.values()) == 1


def put(name, number):
    """A picture of one of the two folders; its number tells Claude what it shows."""
    number = 0x5A3C ^ (number * 257 + (0x8000 if name == "b" else 0))
    numbered_picture(Path(f"art {name}/{number}.png"), number, (96, 96))


@pytest.fixture
def notebooks(workplace, claude):
    for name in FOLDERS:
        for number in range(6):
            put(name, number)
    opened = [Notebook(stage) for stage in STAGES[:3]]
    yield opened
    for notebook in opened:
        notebook.close()


def press_all(notebooks, name):
    """All three notebooks from the settings to the end."""
    for notebook in notebooks:
        notebook.values = settings(notebook.stage, name)
        assert not (error := notebook.press_all()), error


def wander(notebooks, claude, seed, steps, restarts=False):
    """Any way there is, begun with a run that is whole; in the end each run is whole, and paid for once."""
    person = Person(notebooks, claude, seed)
    press_all(notebooks, person.rng.choice("ab"))
    ways = (*Person.WAYS, Person.restart) if restarts else Person.WAYS
    for _ in range(steps):
        person.rng.choice(ways)(person)
        person.check()
    for name in FOLDERS:
        press_all(notebooks, name)
        assert len(read_records(Run(name).dataset)) == len(list(Path(f"art {name}").iterdir()))
    person.check()
    assert len(claude.bill) == sum(person.numbers.values())


def test_cells_in_any_order_mix_no_runs_lose_no_edit_and_pay_nothing_twice(notebooks, claude):
    wander(notebooks, claude, 1, 20)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_hundred_random_orders_of_cells(notebooks, claude, seed):
    wander(notebooks, claude, seed, 16, restarts=True)


# single steps of these, without a kernel


def test_what_another_run_was_offered_is_refused_and_nothing_is_written(workplace, pictures):
    demo = ScrapeConfig(run="demo", demo_posts=4)
    offered = list_items(demo, Run("demo"))
    mine = ScrapeConfig(
        run="mine", source="folder", folder=str(pictures / "x"), permission="own work"
    )
    with pytest.raises(RunError, match="is not there"):
        list_items(mine, Run("mine"))
    with pytest.raises(RunError, match="was listed with other settings: run the cell that lists"):
        list(ingest(mine, Run("mine"), offered))
    with pytest.raises(RunError, match="the settings are of run 'demo'"):
        list(ingest(demo, Run("mine"), offered))
    assert not Path("runs").exists()
    mine = ScrapeConfig(run="mine", source="folder", folder=str(pictures), permission="own work")
    list(ingest(mine, Run("mine"), list_items(mine, Run("mine"))))
    assert len(present(Run("mine").posts)) == 12


def test_a_dataset_is_built_of_its_own_run_alone_and_under_the_permission_of_now(
    workplace, pictures
):
    run = make_dataset("mine", pictures)
    config = DatasetConfig(run="mine", min_side_px=32)
    kept, left_out = curate(config, run)
    kept = kept.assign(split=split(kept, 0.25, 0))
    scrape = ScrapeConfig(run="mine", source="folder", folder=str(pictures), permission="own work")
    list(ingest(scrape, run, list_items(scrape, run)))
    build(config, run, kept, left_out)
    assert {record.permission for record in read_records(run.dataset)} == {"own work"}
    for i in range(4):
        photograph(workplace / f"art/{i}.jpg", 50 + i).with_suffix(".txt").write_text(f"art {i}")
    other = make_dataset("other", workplace / "art")
    with pytest.raises(RunError, match="the settings are of run 'mine'"):
        build(config, other, kept, left_out)
    with pytest.raises(RunError, match="has changed since the images were chosen"):
        build(DatasetConfig(run="other", min_side_px=32), other, kept, left_out)


@pytest.mark.parametrize("stage", STAGES)
def test_settings_that_fail_leave_nothing_to_go_on_with(stage):
    """In all five: both names are taken away first, and the run's is given last."""
    cells = nbformat.read(f"notebooks/{notebook_name(stage)}.ipynb", as_version=4).cells
    (cell,) = [c.source for c in cells if c.cell_type == "code" and "UNSET" in c.source]
    lines = [line for line in cell.splitlines() if not line.startswith(("from ", " ", ")"))]
    assert lines[1].startswith("config = here = UNSET") and lines[0] == ""
    assert [line.split(" ")[0] for line in lines[-2:]] == ["here", "config"]
