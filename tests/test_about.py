import subprocess
import sys

import pytest

import helpers.host.about
from helpers.config import ScrapeConfig, TrainConfig, configure
from helpers.core.run import Run
from tests.conftest import ROOT


def about(*arguments):
    command = [sys.executable, "-m", "helpers.about", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_an_issue_gets_versions_and_settings_and_nothing_that_names_anyone(workplace):
    run = Run("art")
    person = {"source": "instagram", "account": "some.artist", "since": "2024-01-31"}
    run.write_config("scrape", configure(ScrapeConfig, run="art", max_posts=7, **person))
    base = {"base_model": "/home/someone/model", "prompts": ["a private thing"]}
    run.write_config("train", configure(TrainConfig, base, run="art", max_steps=9))
    done = about("art")
    assert done.returncode == 0, done.stderr
    told = done.stdout
    assert "torch 2." in told and "cores" in told and "annalaura-diffusion 0." in told
    assert "scrape: source=instagram, max_posts=7\n" in told
    assert "max_steps=9" in told and "caption: has not run" in told
    for private in ("some.artist", "/home/someone", "private thing", "2024-01-31"):
        assert private not in told


def test_a_run_that_is_not_here_is_told_once(workplace):
    told = helpers.host.about.about(Run("art"))
    assert told.endswith("\nno run of that name is here") and "has not run" not in told


@pytest.mark.parametrize("content", ["", '{"max_steps": 9', "[]", "\xff"])
def test_settings_that_cannot_be_read_are_told_and_the_rest_is_there(workplace, content):
    run = Run("art")
    run.write_config("scrape", configure(ScrapeConfig, run="art", max_posts=7))
    run.config("train").write_text(content, encoding="latin-1")
    told = helpers.host.about.about(run)
    assert "train: its settings cannot be read (config/train.json)\n" in told
    assert "scrape: max_posts=7" in told and "caption: has not run" in told


def test_a_torch_that_does_not_load_is_told_without_its_path_or_a_key(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(
        "raise ImportError('/mnt/My Drive/Some Artist/lib/libtorch.so: no file, key ' + 'sk-ant-' + 'x' * 9)"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    told = about().stdout
    assert "no device: ImportError: libtorch.so: no file" in told
    assert "Artist" not in told and "/" not in told and "sk-ant" not in told


def test_a_run_that_is_no_name_is_refused_in_a_line(workplace):
    done = about("../etc")
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "run is '../etc'" in done.stderr
    )
