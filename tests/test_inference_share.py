"""The model's card, and the model on a hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from diffusers import DiffusionPipeline

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import find_corruption
from helpers.core.permission import require_shareable
from helpers.core.run import Run
from helpers.inference.draw.sampler import Sampler
from helpers.inference.report import report
from helpers.inference.share.model_card import python_lines, write_card
from helpers.inference.share.one_file import export
from tests.loopback_hub import TOKEN, Hub, Repo, loopback_hub

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8, probed_captions=4)
PUSH = """
import json, os, sys
from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.inference.share.push_model import push
from helpers.core.run import Run
for line in sys.stdin:
    workplace, os.environ["HF_TOKEN"], settings = json.loads(line)
    os.chdir(workplace)
    try:
        said = push(InferenceConfig(run="pictures", **settings), Run("pictures"))
    except RunError as error:
        said = f"RunError: {error}"
    print(said, flush=True)
"""


@pytest.fixture(scope="module")
def shared_folder(trained_folder, tmp_path_factory):
    """A run that was judged and exported, once."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(trained_folder / "runs", folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = Run("pictures")
        report(CONFIG, Sampler(run))
        export(run)
        write_card(run)
    return folder


@pytest.fixture
def run(shared_folder, tmp_path, monkeypatch):
    shutil.copytree(shared_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Run("pictures")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A hub, and a process of its own in which the real client pushes to it."""
    home = tmp_path_factory.mktemp("hf")
    with loopback_hub() as hub, (home / "stderr").open("w+") as errors:
        env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
        env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(
            [sys.executable, "-c", PUSH], env=env, text=True, bufsize=1, **pipes
        ) as client:
            yield hub, client
            assert client.communicate()[0] == ""
        errors.seek(0)
        assert client.returncode == 0 and TOKEN not in errors.read()


@pytest.fixture
def hub(served):
    hub, hub.client = served
    vars(hub).update(vars(Hub(hub.url)))  # as if it were new
    return hub


def push(hub, token=TOKEN, **settings):
    """What the real client says."""
    asked = str(Path.cwd()), token, {"push_to": "mira/style", **settings}
    hub.client.stdin.write(json.dumps(asked) + "\n")
    said = hub.client.stdout.readline().strip()
    assert TOKEN not in said
    return said


ROOT = Path(__file__).parent.parent


def permit(run, *permissions):
    rows = [json.loads(line) for line in run.posts.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["permission"] = permissions[i % len(permissions)]
    run.posts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_card_says_what_the_run_knows(run):
    text = (run.export / "README.md").read_text()
    figures = json.loads(run.report_json.read_text())
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "creativeml-openrail-m" and header["library_name"] == "diffusers"
    assert "base_model" not in header  # a folder is no hub id
    for words in ("private study", "| max_steps | 4 |", "mira watercolor", figures["verdict"]):
        assert words in text
    for words in ("style gain", "style distance", "likely copies", "## Limits", "OpenRAIL-M"):
        assert words in text
    assert str(Path.cwd()) not in text and "/tmp" not in text
    for name in ("curves.png", "before_and_after.jpg"):
        assert f"]({name})" in text and (run.export / name).stat().st_size > 1000
    assert find_corruption(run.model) is None and find_corruption(run.export) is None


def test_the_card_names_a_base_on_the_hub(run):
    verdict = json.loads(run.verdict.read_text())
    verdict["trained_with"]["settings"] |= {"base_model": "someone/base", "method": "lora"}
    run.verdict.write_text(json.dumps(verdict))
    header = yaml.safe_load(write_card(run).read_text().split("---")[1])
    assert header["base_model"] == "someone/base" and header["base_model_relation"] == "finetune"


def test_a_card_before_the_report_names_the_notebook(run):
    run.report_json.unlink()
    with pytest.raises(RunError, match="run 05_inference"):
        write_card(run)


def test_the_model_goes_to_the_hub_privately_and_draws_from_there(run, hub, tmp_path):
    assert push(hub).endswith("mira/style, private")
    repo = hub.repos["mira/style"]
    assert repo.private and not repo.seen_public
    assert {"README.md", "model_index.json", "export/pictures.safetensors"} <= repo.files.keys()
    for name, content in repo.files.items():
        if name.endswith(".json"):
            assert b"_name_or_path" not in content
        assert str(tmp_path).encode() not in content and b"/tmp/" not in content
        target = tmp_path / "pulled" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "pulled")
    assert pipeline("a cat", num_inference_steps=1, height=32, width=32).images


def test_it_is_public_only_where_every_permission_allows_it(run, hub):
    assert "RunError: private is False" in push(hub, private=False) and not hub.repos
    permit(run, "own work", "permission of the artist", "private study")
    assert "'private study'" in push(hub, private=False) and not hub.repos
    permit(run, "own work", "permission of the artist")
    assert push(hub, private=False).endswith("public")
    assert not hub.repos["mira/style"].private


def test_a_repository_that_is_public_already_gets_nothing(run, hub):
    hub.repos["mira/style"] = Repo(private=False)
    assert "is a public repository already" in push(hub)
    assert not hub.repos["mira/style"].files


def test_a_hub_that_does_not_keep_it_private_gets_nothing(run, hub):
    hub.deaf_to_privacy = True
    assert "is not private though that was requested" in push(hub)
    assert not hub.repos["mira/style"].files


def test_a_lost_file_and_a_wrong_token_are_told(run, hub):
    hub.drops = "README.md"
    assert "lacks README.md after the push" in push(hub)
    assert push(hub, token="hf_wrong").startswith("RunError: mira/style could not be pushed (")


@pytest.mark.parametrize("permissions", [[], ["private study"], ["own work", ""], ["Own work"]])
def test_the_rule_of_what_may_be_shown(permissions):
    with pytest.raises(RunError, match="leave private=True"):
        require_shareable(permissions)
    require_shareable(["own work", "permission of the artist"])


def test_nothing_is_pushed_unasked(run, hub):
    assert push(hub, push_to="") == "not pushed: push_to is empty" and not hub.requests


def test_the_lines_for_any_python_draw_with_this_run_in_its_style(run):
    lines = python_lines(run)
    assert f'("runs/pictures/model")("a blue cat at night{Sampler(run).suffix}")' in lines
    exec(lines, {})
    assert Path("cat.png").is_file()
