import subprocess
import sys

from helpers.config import ScrapeConfig, TrainConfig, configure
from helpers.run import Run


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


def test_a_run_that_is_no_name_is_refused_in_a_line(workplace):
    done = about("../etc")
    assert (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "run is '../etc'" in done.stderr
    )
