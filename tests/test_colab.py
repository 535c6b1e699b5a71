import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from helpers import colab, setup
from helpers.errors import RunError
from helpers.run import Run
from helpers.store import append_line, damage, replacing_folder

ROOT = Path(__file__).parent.parent


def test_one_command_rewrites_every_badge_and_clone_line(tmp_path):
    for name in ("helpers", "notebooks", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, "-m", "helpers.colab", "someone/their-fork"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("rewrote") == 8
    for path in (*tmp_path.glob("notebooks/*.ipynb"), tmp_path / "README.md"):
        text = path.read_text()
        assert (
            colab.REPOSITORY not in text and "github/someone/their-fork/blob/main/notebooks" in text
        )
    assert (
        "github.com/someone/their-fork annalaura-diffusion"
        in (tmp_path / "notebooks/01_scrape.ipynb").read_text()
    )


def test_a_name_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(RunError, match="give OWNER/NAME"):
        colab.rewrite_repository("only-a-name", tmp_path)


def test_a_run_comes_back_from_drive_on_a_new_machine(workplace, monkeypatch):
    monkeypatch.setattr(colab, "DRIVE", workplace / "drive")
    (workplace / "drive").mkdir()
    run = Run("art")
    with replacing_folder(run.model) as beside:
        (beside / "w").write_text("weights")
    run.cache.mkdir()
    (run.cache / "latents").write_text("big")
    colab.keep(run)
    shutil.rmtree(run.folder)  # the machine is lost
    assert "2 files brought back" in colab.restore(run)
    assert damage(run.model) is None and not run.cache.exists()


def test_work_that_is_ahead_of_drive_is_never_replaced_by_it(workplace, monkeypatch):
    monkeypatch.setattr(colab, "DRIVE", workplace / "drive")
    (workplace / "drive").mkdir()
    run = Run("art")
    append_line(run.train_log, "one")
    colab.keep(run)
    append_line(run.train_log, "two")
    colab.restore(run)
    assert run.train_log.read_text() == "one\ntwo\n"


def test_without_drive_the_run_stays_here(workplace):
    run = Run("art")
    assert "kept on this machine" in colab.restore(run)
    colab.keep(run)


def test_a_key_comes_from_the_environment_or_says_how_to_set_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "value")
    assert colab.secret("SOME_KEY") == "value"
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(RunError, match="SOME_KEY is not set: on Colab add it under Secrets"):
        colab.secret("SOME_KEY")


def test_setup_says_what_moved_since_this_was_checked(tmp_path, monkeypatch):
    (tmp_path / "runtime.txt").write_text(
        f"python==3.2.1\npillow==1.0\npapermill=={version('papermill')}\n"
    )
    monkeypatch.setattr(setup, "CHECKED", tmp_path / "runtime.txt")
    words = setup.runtime_words()
    assert f"pillow {version('pillow')} (checked with 1.0)" in words and "papermill" not in words
    assert f"python {sys.version_info.major}.{sys.version_info.minor} (checked with 3.2)" in words


def test_a_training_longer_than_a_session_says_that_it_goes_on(monkeypatch):
    from helpers.train import plan

    monkeypatch.setattr(plan, "on_colab", lambda: True)
    short = plan.Plan(1, 1, 1.0, 2.0, 0.1, 3, 9.0, steps_per_s=1.0, hours=11.0)
    assert "session" not in str(short)
    assert "lasts 12 hours at most" in str(replace(short, hours=13.0))
