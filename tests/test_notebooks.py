"""The five notebooks keep the house's shape."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import nbformat
import papermill
import pytest

from helpers.config import CONFIGS
from helpers.core.run import STAGES, notebook_name
from helpers.host.repository import badges
from tests.image import IMAGES
from tools.figures import FIGURES

ROOT = Path(__file__).parent.parent
PATHS = {stage: ROOT / "notebooks" / f"{notebook_name(stage)}.ipynb" for stage in STAGES}


def read(stage):
    return nbformat.read(PATHS[stage], as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def words_of(stage):
    return [cell for cell in read(stage).cells if cell.cell_type == "markdown"]


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


def test_it_is_written_as_one_program_would_write_it(stage):
    """So that a change of a word is a change of a line: what TensorFlow's nbfmt and nblint ask for."""
    text = PATHS[stage].read_text(encoding="utf-8")
    there = json.loads(text)
    assert text == json.dumps(there, indent=1, ensure_ascii=False) + "\n"
    assert (there["nbformat"], there["nbformat_minor"]) == (4, 5)
    assert set(there["metadata"]) <= {"accelerator", "colab", "kernelspec", "language_info"}
    assert there["metadata"]["kernelspec"]["name"] == "python3"
    assert not {"name", "version"} - {"version"} - set(there["metadata"]["language_info"])
    for cell in there["cells"]:
        assert set(cell["metadata"]) <= {"cellView", "tags"}, cell["id"]
        lines = "".join(cell["source"]).split("\n")
        assert lines[0].strip() and lines[-1].strip(), f"{cell['id']} begins or ends empty"
        assert not [line for line in lines if line != line.rstrip() or "\t" in line], cell["id"]


def test_each_cell_has_a_name_of_its_own_that_stays(stage):
    names = [cell["id"] for cell in json.loads(PATHS[stage].read_text())["cells"]]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(rf"{stage}-[a-z0-9-]+", name) for name in names), names


def test_strip_leaves_a_committed_notebook_alone_and_takes_what_a_run_left(tmp_path, stage):
    recipe = re.search(
        r"^\t\$\(BIN\)/nbstripout (.*) notebooks/", (ROOT / "Makefile").read_text(), re.M
    )
    strip = [str(Path(sys.executable).with_name("nbstripout")), *shlex.split(recipe[1])]
    path = Path(shutil.copy(PATHS[stage], tmp_path))
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(code_of(notebook)):
        cell.execution_count = number + 1
        cell.outputs = [nbformat.v4.new_output("stream", text="an artist's name")]
        cell.metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
        cell.metadata["papermill"] = {"duration": 1.0}
    notebook.metadata["papermill"] = {"output_path": "runs/art/notebooks/out.ipynb"}
    nbformat.write(notebook, path)
    untouched = Path(shutil.copy(PATHS[stage], tmp_path / "as-committed.ipynb"))
    subprocess.run([*strip, path, untouched], check=True, capture_output=True)
    assert json.loads(path.read_text()) == json.loads(PATHS[stage].read_text())
    assert untouched.read_bytes() == PATHS[stage].read_bytes()


def test_it_opens_with_title_badge_and_table(stage):
    notebook = read(stage)
    first = notebook.cells[0].source
    assert first.startswith("# ") and first.split("\n")[1:3] == ["", badges(PATHS[stage].name)]
    for word in ("Reads", "Writes", "Needs", "Takes"):
        assert f"**{word}**" in first
    titles = [
        c for c in notebook.cells if c.cell_type == "markdown" and re.search("^# ", c.source, re.M)
    ]
    assert len(titles) == 1


def test_setup_is_the_same_in_all_five():
    assert len({code_of(read(stage))[0].source for stage in STAGES}) == 1


def test_a_gpu_is_asked_for_where_it_is_used_and_the_tried_runtime_everywhere(stage):
    metadata = read(stage).metadata
    has_gpu = stage in ("train", "inference")
    assert (metadata.get("accelerator") == "GPU") == has_gpu == ("gpuType" in metadata.colab)
    assert metadata.colab.runtime_attributes.runtime_version in IMAGES
    assert metadata.kernelspec.name == "python3" and metadata.language_info.name == "python"


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
    assert len(words_of(stage)) >= 0.8 * len(code_of(read(stage)))
    assert [cell.cell_type for cell in cells[-3:]] == ["code", "markdown", "markdown"]
    assert cells[-2].source.startswith("## Next\n")


def test_a_text_cell_is_one_idea_of_at_most_90_words_but_the_first(stage):
    lengths = [len(cell.source.split()) for cell in words_of(stage)[1:]]
    assert max(lengths) <= 90 and sorted(lengths)[len(lengths) // 2] <= 60


def test_at_least_four_figures_explain_and_every_figure_is_shown(stage):
    """Each shown by its name; the pictures that a run makes itself come on top."""
    code = "\n".join(cell.source for cell in code_of(read(stage)))
    shown = re.findall(r"""show_figure\("(\w+)"\)""", code)
    own = {name for name in FIGURES if name[:2] == PATHS[stage].name[:2]}
    assert len(shown) == len(set(shown)) >= 4 and set(shown) == own


def test_what_is_kept_is_said_before_the_check_that_may_fail(stage):
    kept, checked = code_of(read(stage))[-1].source.splitlines()
    assert kept == "print(sync(here))" and re.fullmatch(r"print\(verify_\w+\(here\)\)", checked)


def test_no_line_has_two_dollars_which_jupyter_takes_for_mathematics(stage):
    for cell in read(stage).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"(?<!\\)\$[^$\n]*(?<!\\)\$", cell.source), cell.source


def test_it_says_what_to_do_when_it_looks_wrong_and_names_no_program_that_colab_ends(stage):
    assert read(stage).cells[-1].source.startswith("## If this looks wrong\n")
    assert not re.search("A1111|webui|ngrok|gradio", PATHS[stage].read_text(), re.IGNORECASE)


def test_it_says_where_the_next_notebook_finds_the_run(stage):
    following, wrong = (cell.source for cell in read(stage).cells[-2:])
    here = re.search(r"Setup says how it finds this run.*--from (\d\d)", following)
    assert bool(here) == (stage != STAGES[-1])
    assert not here or STAGES[int(here[1]) - 1] == STAGES[STAGES.index(stage) + 1]
    assert "`!python -m helpers.about {run}`" in wrong


def test_no_word_names_a_host_but_the_badges_and_the_line_on_setup(stage):
    for cell in read(stage).cells:
        words = re.sub(r"\[!\[Open In .*?\]\(.*?\)\]\(.*?\)", "", cell.source)
        if cell.cell_type == "markdown":
            words = words.replace("On Colab and Kaggle, **Setup** below", "")
            assert not re.search("Colab|Kaggle|Google Drive|Drive|/content", words), cell.source


def test_links_lead_to_notebooks_that_are_there(stage):
    for cell in read(stage).cells:
        for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", cell.source):
            assert (ROOT / "notebooks" / target).is_file()


def test_it_holds_no_secret_and_no_picture(stage):
    text = PATHS[stage].read_text()
    assert not re.search(r"sk-ant-|hf_[A-Za-z0-9]{20}|base64|sessionid=\w", text)
    assert not any("sessionid" in cell.source for cell in code_of(read(stage)))
    assert len(text) <= 25_000
