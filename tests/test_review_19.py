"""Models and exports once more: a base in another's place, another training's settings, no suffix, paths as typed."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from helpers.config import InferenceConfig
from helpers.errors import RunError
from helpers.inference.report import report
from helpers.inference.sample import Request, Studio
from helpers.run import Run
from helpers.store import read_json, write_json

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8, probed_captions=2)


@pytest.fixture
def run(lora_folder, tmp_path, monkeypatch):
    """A LoRA's run, its base beside it, in a workplace of its own."""
    shutil.copytree(lora_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Run("pictures")


@pytest.fixture
def swapped_base(run, tmp_path):
    """The run with its base at a path at which other weights lie now."""
    verdict = read_json(run.verdict)
    base = tmp_path / "base"
    shutil.copytree(verdict["trained_with"]["settings"]["base_model"], base)
    verdict["trained_with"]["settings"]["base_model"] = str(base)
    write_json(run.verdict, verdict)
    return base


def change(path):
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 0.01}, path, {"format": "pt"})


@pytest.mark.parametrize("model", ["base", "step-000004"])
def test_other_weights_at_the_bases_path_are_not_shown_as_the_base(run, swapped_base, model):
    asked = [Request("a cat", 1, num_inference_steps=2, model=model)]
    kept = Studio(run).draw(asked)[0].tobytes()
    change(swapped_base / "unet/diffusion_pytorch_model.safetensors")
    studio = Studio(run)
    assert studio.draw([Request("a cat", 1, num_inference_steps=2)])
    with pytest.raises(RunError, match="has other weights now than this model was trained from"):
        studio.draw(asked)
    with pytest.raises(RunError, match="put back the base model"):
        report(CONFIG, studio)
    assert kept and not run.report_json.is_file()
