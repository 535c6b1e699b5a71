"""Notebooks that people saved of version 0.2.0, and commands that they wrote down, with today's helpers."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from tests.test_walk import MORE, SMALL

JUDGED = "judged_samples"
SETTINGS = {  # what their `more` takes
    "04_train": {name: value for name, value in MORE.items() if name != JUDGED},
    "05_inference": {JUDGED: MORE[JUDGED]},
}
SAVED = sorted((Path(__file__).parent / "golden/notebooks-v0.2.0").glob("*.ipynb"))


def imports_of(path):
    cells = nbformat.read(path, as_version=4).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    code = "\n".join(source for source in sources if not source.lstrip().startswith("%"))
    kept = [line for line in code.split("\n") if line.lstrip().startswith("from helpers")]
    for line in kept:
        node = ast.parse(line.strip()).body[0]
        yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_what_a_saved_notebook_imports_is_there(path):
    for module, name in imports_of(path):
        assert callable(getattr(importlib.import_module(module), name)), f"{module}.{name}"


def test_an_old_import_path_says_once_what_to_open_instead():
    code = "from helpers.store import read_json\nfrom helpers.records import Post"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "today's is in notebooks/ of the repository" in done.stdout
    assert "helpers.core.files in place of helpers.store" in done.stdout
    assert done.stdout.count("\n") == 1 and not done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("helpers.about", "annalaura-diffusion 0."),
        ("helpers.about --help", "usage: python -m helpers.about"),
        ("helpers.colab", "usage: python -m helpers.colab"),
        ("helpers.colab --help", "usage: python -m helpers.colab"),
        ("helpers.scrape.login", "usage: python -m helpers.scrape.login"),
        ("helpers.scrape.login --help", "usage: python -m helpers.scrape.login"),
        ("helpers.scrape.api_token --help", "usage: python -m helpers.scrape.api_token"),
        ("helpers.setup", "installed  "),
        ("helpers.dataset.takedown --help", "usage: python -m helpers.dataset.takedown"),
        ("helpers.dataset.publish --help", "usage: python -m helpers.dataset.publish"),
        ("helpers.train --help", "usage: python -m helpers.train"),
        ("helpers.train.sweep --help", "usage: python -m helpers.train.sweep"),
    ],
)
def test_a_command_is_found_under_its_name(command, words):
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True)
    assert words in (done.stdout if "--help" in command else done.stdout + done.stderr)
    assert "Warning" not in done.stderr and "this notebook" not in done.stdout


def test_the_five_saved_notebooks_walk_from_a_folder_to_a_report(
    workplace, pictures, tiny_base, tmp_path
):
    given = {"run": "saved", "source": "folder", "folder": str(pictures), "base_model": tiny_base}
    given |= SMALL | {"max_steps": 2}
    for path in SAVED:
        cells = nbformat.read(path, as_version=4).cells
        known = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
        mine = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if k in known}
        mine["more"] = SETTINGS.get(path.stem, {})
        target = tmp_path / path.name
        papermill.execute_notebook(str(path), str(target), mine, progress_bar=False)
    assert (workplace / "runs/saved/report.html").is_file()
    assert "is a copy of an older version, and still works" in target.read_text()
