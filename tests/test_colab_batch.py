"""A machine that has nothing of the project: an empty folder, a repository to clone, and tools/colab_batch.py."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest

from tools import colab_batch

ROOT = Path(__file__).parent.parent
PARTS = ("helpers", "notebooks", "assets", "pyproject.toml", "requirements.txt")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """This tree as a git repository of its own, whatever the checkout was made by."""
    bare = tmp_path_factory.mktemp("origin") / "it.git"
    git = ["git", f"--git-dir={bare}", f"--work-tree={ROOT}", "-c", "user.name=a"]
    git += ["-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", bare], check=True)
    subprocess.run([*git, "add", *PARTS], cwd=ROOT, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], cwd=ROOT, check=True)
    return bare


@pytest.fixture
def machine(tmp_path, repository):
    """Sends the script to a kernel's place of work, as `colab run` does: its text, with arguments set."""
    script = (ROOT / "tools/colab_batch.py").read_text()

    def run(*arguments):
        argv = ["colab_batch.py", *map(str, arguments), "--root", str(tmp_path / "clone")]
        argv += ["--repository", f"file://{repository}"]
        payload = f"import sys\nsys.argv = {argv!r}\n__name__ = '__main__'\n{script}"
        # what it installs is here already; pip may not look for anything else
        env = os.environ | {"PIP_NO_INDEX": "1"}
        return subprocess.run(
            [sys.executable, "-c", payload], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    return run


def packed(path):
    with tarfile.open(path) as tar:
        return {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}


def test_a_fresh_machine_clones_runs_and_packs(machine, tmp_path):
    done = machine("art", "--only", "01", "-p", "more", "{'demo_posts': 4}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"posts.jsonl", "images", "notebooks/01_scrape.ipynb"} <= packed(tmp_path / "art.tar")
    assert "of 13 posts in runs/art/images" in done.stdout and "packed" in done.stdout


def test_a_run_that_began_at_home_goes_on_with_its_keys(tmp_path, monkeypatch):
    (tmp_path / "home/art").mkdir(parents=True)
    (tmp_path / "home/art/posts.jsonl").write_text("{}\n")
    begun, keys = tmp_path / "art.tar", tmp_path / "keys.env"
    subprocess.run(["tar", "-cf", begun, "-C", tmp_path / "home", "art"], check=True)
    colab_batch.unpack(begun, tmp_path)
    assert (tmp_path / "runs/art/posts.jsonl").is_file()
    keys.write_text("# mine\nSOME_KEY = a=b\n\n")
    monkeypatch.setenv("SOME_KEY", "")
    colab_batch.take_keys(keys)
    assert os.environ["SOME_KEY"] == "a=b" and not keys.exists()


def test_what_is_too_large_to_download_is_named_and_left(tmp_path, monkeypatch, capsys):
    model = tmp_path / "clone/runs/art/model"
    model.mkdir(parents=True)
    (model / "unet.safetensors").write_bytes(b"x" * 2000)
    (model / "lora.safetensors").write_bytes(b"x" * 10)
    monkeypatch.setattr(colab_batch, "MOST_BYTES", 1000)
    target = colab_batch.pack(tmp_path / "clone", "art", failed=0)
    assert packed(target) == {"model", "model/lora.safetensors"}
    assert "art/model/unet.safetensors (Drive or push_to" in capsys.readouterr().out


def test_a_notebook_that_fails_gives_its_line_a_status_and_what_there_is(machine, tmp_path):
    done = machine("art", "--only", "02")
    assert done.returncode == 1
    assert "runs/art/posts.jsonl is missing: run 01_scrape with run='art' first" in done.stdout
    assert not (tmp_path / "art.tar").exists()
    executed = tmp_path / "clone/runs/art/notebooks/02_caption.ipynb"
    errors = [o for c in nbformat.read(executed, 4).cells for o in c.get("outputs", [])]
    assert any(output.output_type == "error" for output in errors)
    assert "notebooks/02_caption.ipynb" in packed(tmp_path / "art-stopped.tar")


def test_without_the_tag_it_takes_main_but_not_in_place_of_a_ref_that_was_asked_for(
    machine, tmp_path
):
    done = machine("art", "--only", "07")  # a mistake of helpers.batch, which is there by then
    assert f"{colab_batch.RELEASE} not found" in done.stdout and "the newest main" in done.stdout
    assert "there is no notebook '07'" in done.stdout and (tmp_path / "clone/helpers").is_dir()
    shutil.rmtree(tmp_path / "clone")
    done = machine("art", "--ref", "no-such-tag")
    assert done.returncode and "no-such-tag not found" in done.stdout
    assert "newest" not in done.stdout and not (tmp_path / "clone").exists()


def test_it_installs_as_setup_does(machine, tmp_path):
    done = machine("art", "--only", "07")
    assert "installed  nothing: all is there" in done.stdout, done.stderr


def test_a_repository_that_is_not_there_ends_it_at_once(tmp_path):
    command = [sys.executable, ROOT / "tools/colab_batch.py", "art", "--root", tmp_path / "clone"]
    command += ["--repository", f"file://{tmp_path}/nothing.git"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode > 0 and "nothing.git" in done.stdout and not list(tmp_path.iterdir())
