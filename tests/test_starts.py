"""The notebooks as a person opens them on Colab: a bare machine, a stub of google.colab, everything else as it is."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest

from helpers.host import here
from helpers.host.interface import FOLDER
from helpers.host.repository import RELEASE, REPOSITORY
from helpers.mirror.drive import Drive
from helpers.mirror.restore import restore_from
from helpers.mirror.sync import sync
from tests.conftest import ROOT, SMALL_TRAINING, lines, make_dataset
from tests.drive import mounted
from tools import colab_batch

STUB = ROOT / "tests/stub"
FEW = {"demo_posts": 4}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="session")
def origin(tmp_path_factory):
    """The repository as GitHub would have it, with the release's tag; but Drive is mounted where a test may have it."""
    folder = tmp_path_factory.mktemp("origin")
    for name in ("helpers", "notebooks", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("requirements*.txt"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    code = (folder / "helpers/host/colab.py").read_text()
    assert code.count('MOUNT = Path("/content/drive")') == 1
    code = code.replace('Path("/content/drive")', 'Path(os.environ["STUB_MOUNT"])')
    (folder / "helpers/host/colab.py").write_text(code)
    code = (folder / "helpers/host/kaggle.py").read_text()
    assert code.count('ROOT = Path("/kaggle")') == 1
    code = code.replace('Path("/kaggle")', 'Path(os.environ.get("STUB_KAGGLE", "/kaggle"))')
    (folder / "helpers/host/kaggle.py").write_text(code)
    commit(folder, ["init", "-q", "-b", "main"], ["tag", RELEASE])
    return folder


def commit(folder, first, *then):
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (first, ["add", "."], ["commit", "-qm", "a"], *then):
        subprocess.run([*git, *words], check=True)


@pytest.fixture(scope="session")
def bare(origin, tmp_path_factory):
    """That repository as a server has it, bare."""
    return as_bare(origin, tmp_path_factory.mktemp("github") / "it.git")


def as_bare(folder, target, *options):
    subprocess.run(["git", "clone", "-q", "--bare", *options, folder, target], check=True)
    return target


@pytest.fixture
def colab(tmp_path, bare, monkeypatch):
    """A new machine of Colab: an empty /content, and a Google Drive that its person may let it have."""
    (tmp_path / "cloud").mkdir()
    given = {
        "COLAB_RELEASE_TAG": "release-colab-external",
        "PYTHONPATH": str(STUB),
        "STUB_MOUNT": str(tmp_path / "content/drive"),
        "STUB_ASKED": str(tmp_path / "asked"),
        "STUB_CLOUD": str(tmp_path / "cloud"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{bare}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{REPOSITORY}",
        "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RUNS_MIRROR", raising=False)
    new_machine(tmp_path)
    return tmp_path


def new_machine(folder):
    shutil.rmtree(folder / "content", ignore_errors=True)
    (folder / "content").mkdir()


def read(number, /, root=ROOT, **typed):
    """A notebook with what a person types into its form."""
    [path] = (root / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    [form] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    for name, value in typed.items():
        ast.literal_eval(repr(value))
        form.source, count = re.subn(f"(?m)^{name} = .*", f"{name} = {value!r}", form.source)
        assert count == 1, name
    return notebook


def by_hand(notebook, machine):
    """Run every cell as Colab's own server does; return what each printed."""
    done, printed = opened(notebook, machine)
    assert done.returncode == 0, done.stderr
    assert not re.search("kaggle", shown(machine / "opened.ipynb"), re.IGNORECASE)
    return printed


def opened(notebook, machine):
    nbformat.write(notebook, machine / "opened.ipynb")
    command = [sys.executable, STUB / "jupyter-server", machine / "opened.ipynb"]
    done = subprocess.run([*command, machine / "content"], capture_output=True, text=True)
    cells = nbformat.read(machine / "opened.ipynb", as_version=4).cells
    printed = [
        "".join(o.get("text", "") for o in cell.outputs)
        for cell in cells
        if cell.cell_type == "code"
    ]
    return done, printed


def shown(path):
    """All words that the cells of an executed notebook show: printed, tables, errors, and those in widgets."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    words = [json.dumps(notebook.metadata.get("widgets", {}), ensure_ascii=False)]
    for output in outputs:
        words += [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
        data = output.get("data", {})
        words += [str(data[kind]) for kind in data if not kind.startswith("image/")]
    return "\n".join(words)


def asked(machine):
    return (machine / "asked").read_text().splitlines() if (machine / "asked").exists() else []


def from_drive(machine):
    """What a new machine would get of the run."""
    folder = machine / "looked-at"
    restore_from(Drive(machine / "cloud", f"{FOLDER}/mine"), folder)
    return folder


def setup_cell(notebook):
    return next(cell for cell in notebook.cells if cell.cell_type == "code")


def test_setup_clones_the_tag_of_this_version_or_a_forks_main():
    source = setup_cell(read("01")).source
    assert f" -b {RELEASE} " in source and f'"https://github.com/{REPOSITORY}"' in source
    assert RELEASE == colab_batch.RELEASE and RELEASE in (f"v{VERSION}", "main")


def test_a_first_start_clones_once_asks_once_and_keeps_the_run_on_drive(colab):
    notebook = read("01", run="mine", more=FEW)
    notebook.cells.insert(2, nbformat.v4.new_code_cell(setup_cell(notebook).source))
    first, second, *_ = by_hand(notebook, colab)
    for word in ("installed", "runtime", "machine", "Drive", "session"):
        assert re.search(f"^{word} ", first, re.M), first
    assert "of memory" in first and "of disk free" in first and "runs are mirrored to" in first
    assert "nothing: all is there" in first and asked(colab) == ["drive"]
    assert "Mounted" in first and "Mounted" not in second and "runs are mirrored to" in second
    here = colab / "content/annalaura-diffusion/runs/mine"
    assert lines(from_drive(colab) / "posts.jsonl") == lines(here / "posts.jsonl") != []


def test_after_a_lost_machine_the_training_goes_on_from_drive(colab, pictures, tiny_base):
    small = {
        k: v
        for k, v in SMALL_TRAINING.items()
        if k not in ("max_steps", "train_batch_size", "resolution_px")
    }
    typed = {
        "run": "mine",
        "base_model": str(tiny_base),
        "train_batch_size": 2,
        "resolution_px": 32,
        "more": small,
    }
    with pytest.MonkeyPatch.context() as patch:
        (colab / "first").mkdir()
        patch.chdir(colab / "first")
        patch.setattr(here, "MIRROR", mounted(colab / "cloud"))
        assert "is kept on Google Drive" in sync(make_dataset("mine", pictures))
    by_hand(read("04", max_steps=2, **typed), colab)
    kept = colab / "cloud" / FOLDER / "mine"
    assert [p.name for p in (kept / "checkpoints").glob("step-*2")] == ["step-000002"]
    new_machine(colab)
    printed = "".join(by_hand(read("04", max_steps=4, **typed), colab))
    assert "files restored" in printed and "already" not in printed
    assert [row["step"] for row in lines(from_drive(colab) / "train_log.jsonl")] == [0, 1, 2, 3, 4]
    assert asked(colab) == ["drive"] * 2


def test_who_refuses_drive_is_told_once_and_works_on(colab, monkeypatch):
    monkeypatch.delenv("STUB_CLOUD")
    first, *rest = by_hand(read("01", run="mine", more=FEW), colab)
    assert "not mounted (Error: credential propagation was unsuccessful)" in first
    assert "the next one will not find this run" in first and "helpers.batch RUN" in first
    assert asked(colab) == ["drive"] and "on this machine alone" in "".join(rest)
    assert lines(colab / "content/annalaura-diffusion/runs/mine/posts.jsonl")


def test_a_notebook_that_papermill_runs_asks_nobody(colab, monkeypatch):
    by_hand(nbformat.v4.new_notebook(cells=[setup_cell(read("01"))]), colab)
    here = colab / "content/annalaura-diffusion"
    (colab / "asked").unlink()
    command = [sys.executable, "-m", "helpers.batch", "mine", "--only", "01,02"]
    command += ["-p", "more", str(FEW)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert asked(colab) == [] and lines(from_drive(colab) / "posts.jsonl")


def test_without_the_tag_the_first_cell_says_so_and_takes_main(colab):
    cell = setup_cell(read("01"))
    cell.source = cell.source.replace(f"-b {RELEASE} ", "-b v99 ")
    [said] = by_hand(nbformat.v4.new_notebook(cells=[cell]), colab)
    assert "v99 not found" in said and "taking the newest main" in said
    assert re.search("^session ", said, re.M)


@pytest.mark.parametrize("ref", ["the tag", "main"])
def test_a_fork_without_tags_opened_by_its_badge_runs_its_own_main(colab, origin, monkeypatch, ref):
    fork = colab / "fork"
    shutil.copytree(origin, fork)
    (fork / "README.md").write_text("")
    rewrite = [sys.executable, "-m", "helpers.colab", "someone/a-fork"]
    rewrite += ["main"] if ref == "main" else []
    subprocess.run(rewrite, cwd=fork, check=True, capture_output=True)
    (fork / "helpers/only_in_the_fork.py").write_text("")
    commit(fork, ["checkout", "-q", "main"])
    theirs = as_bare(fork, colab / "a-fork.git", "--no-tags")
    assert not subprocess.check_output(["git", "-C", theirs, "tag"])
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{theirs}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/someone/a-fork")
    [said, *_] = by_hand(read("01", root=fork, run="mine", more=FEW), colab)
    assert (f"{RELEASE} not found" in said and "taking the newest main" in said) == (ref != "main")
    assert ("not found" in said) == (ref != "main")
    here = colab / "content/annalaura-diffusion"
    assert (here / "helpers/only_in_the_fork.py").is_file()
    assert lines(here / "runs/mine/posts.jsonl")


def test_a_repository_that_is_not_to_be_had_stops_the_first_cell_with_gits_reason(
    colab, monkeypatch
):
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.file://{colab}/nothing.insteadOf")
    notebook = nbformat.v4.new_notebook(cells=[setup_cell(read("01"))])
    done, [said] = opened(notebook, colab)
    assert "No such file or directory: 'annalaura-diffusion'" in done.stderr, done.stderr
    assert done.returncode
    assert "does not" in said and "nothing" in said  # git's own words, with the address


def test_a_folder_of_ones_own_takes_drives_place_and_nobody_is_asked(colab, monkeypatch):
    monkeypatch.setenv("RUNS_MIRROR", str(colab / "not/yet/there"))
    first, *rest = by_hand(read("01", run="mine", more=FEW), colab)
    assert f"runs are mirrored to {colab}/not/yet/there" in first and asked(colab) == []
    assert f"is kept on {colab}/not/yet/there" in "".join(rest) and "Google" not in "".join(rest)
    assert not (colab / "content/drive").exists()


PERSON = "Colab's server"
PROGRAMS = {
    PERSON: [STUB / "jupyter-server"],
    "papermill": ["-m", "papermill"],
    "a script with papermill": [
        "-c",
        "import sys, papermill\npapermill.execute_notebook(*sys.argv[1:2] * 2)",
    ],
    "a script with nbclient": [
        "-c",
        "import sys, nbformat, nbclient\nnotebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook).execute()\nnbformat.write(notebook, sys.argv[1])",
    ],
}


def run_cell(code, folder, program):
    """What a cell prints on Colab, in a notebook that `program` runs."""
    cells = [nbformat.v4.new_code_cell(code)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=read("01").metadata)
    path = folder / "one.ipynb"
    nbformat.write(notebook, path)
    given = {"COLAB_RELEASE_TAG": "a", "PYTHONPATH": f"{STUB}:{ROOT}", "STUB_ASKED": os.devnull}
    target = path if program[0] == "-m" else ROOT
    command = [sys.executable, *program, path, target]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "".join(output.text for output in nbformat.read(path, as_version=4).cells[-1].outputs)


@pytest.mark.parametrize("program", PROGRAMS)
def test_only_who_has_the_notebook_open_is_asked(tmp_path, program):
    code = "from helpers.host.colab import is_attended\nprint(is_attended())"
    printed = run_cell(code, tmp_path, PROGRAMS[program])
    assert printed == f"{program == PERSON}\n"


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ('{"KEY": "open sesame"}', "[KEY]"),  # what it is, no kernel sends
        ("{}", "KEY is not set: add it under Secrets (the key in the left bar)"),
        ('{"KEY": null}', "switch on its Notebook access"),
        ("null", "Secrets did not answer"),
    ],
    ids=["there", "missing", "not opened", "no answer"],
)
def test_a_secret_comes_or_a_line_says_how_to_set_it(tmp_path, monkeypatch, secrets, said):
    code = (
        "from helpers.core.process import prepare_process\nprepare_process()\n"  # as Setup does
        "from helpers.host.here import secret\nfrom helpers.core.errors import RunError\n"
        "try:\n    print(secret('KEY'))\nexcept RunError as error:\n    print(error)"
    )
    monkeypatch.delenv("KEY", raising=False)
    monkeypatch.setenv("STUB_SECRETS", secrets)
    printed = run_cell(code, tmp_path, PROGRAMS[PERSON])
    assert said in printed and printed.count("\n") == 1


def test_where_nobody_can_be_asked_a_line_says_how_to_hand_a_secret_on(tmp_path, monkeypatch):
    code = (
        "from helpers.host.here import secret\nfrom helpers.core.errors import RunError\n"
        "try:\n    secret('KEY')\nexcept RunError as error:\n    print(error)"
    )
    monkeypatch.delenv("KEY", raising=False)
    printed = run_cell(code, tmp_path, PROGRAMS["papermill"])
    assert "os.environ['KEY'] = userdata.get('KEY')" in printed and printed.count("\n") == 1
