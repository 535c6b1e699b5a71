"""The five notebooks keep the house's shape."""

import ast
import re
from dataclasses import MISSING, fields
from pathlib import Path

import nbformat
import papermill
import pytest

from helpers.colab import badge
from helpers.config import CONFIGS
from helpers.run import STAGES, notebook_name

ROOT = Path(__file__).parent.parent
PATHS = {stage: ROOT / "notebooks" / f"{notebook_name(stage)}.ipynb" for stage in STAGES}


def read(stage):
    return nbformat.read(PATHS[stage], as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook):
    tagged = [cell for cell in code_of(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    return ast.parse(tagged[0].source)


@pytest.fixture(params=STAGES)
def stage(request):
    return request.param


def test_it_is_valid_and_has_no_outputs(stage):
    notebook = read(stage)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_of(notebook))


def test_it_opens_with_title_badge_and_table(stage):
    notebook = read(stage)
    first = notebook.cells[0].source
    assert first.startswith("# ") and badge(PATHS[stage].name) in first
    for word in ("Reads", "Writes", "Needs", "Takes"):
        assert f"**{word}**" in first
    titles = [
        c for c in notebook.cells if c.cell_type == "markdown" and re.search("^# ", c.source, re.M)
    ]
    assert len(titles) == 1


def test_setup_is_the_same_in_all_five():
    assert len({code_of(read(stage))[0].source for stage in STAGES}) == 1


def test_parameters_are_literals_that_papermill_reads(stage):
    tree = parameters(read(stage))
    for node in tree.body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)
    names = {node.targets[0].id for node in tree.body}
    assert len(names) <= 12 and {"run", "more"} <= names
    assert set(papermill.inspect_notebook(str(PATHS[stage]))) == names


def test_parameters_are_fields_of_the_config_with_its_defaults(stage):
    defaults = {f.name: f.default for f in fields(CONFIGS[stage])}
    for node in parameters(read(stage)).body:
        name, value = node.targets[0].id, ast.literal_eval(node.value)
        if name in ("more", "banned_words") or value is None:
            continue
        assert defaults[name] is not MISSING and defaults[name] == value, name


def test_cells_are_short_and_only_choose_look_and_narrate(stage):
    cells = code_of(read(stage))
    assert 8 <= len(cells) <= 12
    for cell in cells:
        code = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15, cell.source
        banned = ast.FunctionDef | ast.ClassDef | ast.Try | ast.Global | ast.AsyncFunctionDef
        assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, banned)]
        assert "input(" not in code


def test_words_go_before_every_action(stage):
    cells = read(stage).cells
    words = [cell for cell in cells if cell.cell_type == "markdown"]
    assert len(words) >= 0.8 * len(code_of(read(stage)))
    assert cells[-1].cell_type == "markdown" and cells[-1].source.startswith("## Next")


def test_no_line_has_two_dollars_which_jupyter_takes_for_mathematics(stage):
    for cell in read(stage).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"(?<!\\)\$[^$\n]*(?<!\\)\$", cell.source), cell.source


def test_links_lead_to_notebooks_that_are_there(stage):
    for cell in read(stage).cells:
        for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", cell.source):
            assert (ROOT / "notebooks" / target).is_file()


def test_it_holds_no_secret_and_no_picture(stage):
    text = PATHS[stage].read_text()
    assert not re.search(r"sk-ant-|hf_[A-Za-z0-9]{20}|base64|sessionid", text)
    assert len(text) <= 25_000
