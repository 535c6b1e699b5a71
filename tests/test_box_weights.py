"""What the box draws with is what was trained, and its base is the untouched base."""

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_manifest
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.inference.draw.sampler import Request, Sampler
from helpers.train.prepare import prepare
from tests.conftest import SMALL_TRAINING, make_trained

LORA = {"method": "lora", "learning_rate": 0.05}
TEXT = {"train_text_encoder": True, "text_encoder_lr": 0.02}
TRAININGS = {
    "full with text encoder, averaged": TEXT | {"use_ema": True, "ema_decay": 0.5},
    "lora, alpha below its rank": LORA | {"rank": 8, "lora_alpha": 2},
    "lora, alpha above its rank, attention alone": LORA
    | {"rank": 4, "lora_alpha": 16, "lora_targets": "attention"},
    "lora with text encoder": LORA | TEXT | {"rank": 4, "lora_alpha": 8},
}


@pytest.fixture(scope="module", params=TRAININGS)
def trained(request, tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("trained")
    return make_trained(folder, tiny_base, **TRAININGS[request.param]), TRAININGS[request.param]


def seen_by(unet, text_encoder, device):
    """What a UNet makes of noise and words."""
    source = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 4, generator=source)
    ids = torch.randint(5, 60, (2, 16), generator=source)
    with torch.no_grad():
        texts = text_encoder.to(device)(ids).last_hidden_state
        return unet(latents, torch.tensor([10, 700]), texts).sample


def test_each_checkpoint_shows_as_it_trained(trained, monkeypatch, tiny_base):
    folder, given = trained
    monkeypatch.chdir(folder)
    run, device = Run("pictures"), pick_device()
    sampler = Sampler(run)
    parts = sampler.weights.modules

    def shown(name):
        sampler.weights.load(name)
        return seen_by(parts["unet"], parts["text_encoder"], "cpu")

    base = shown("base")
    given = {"run": "pictures", "base_model": str(tiny_base), **SMALL_TRAINING, **given}
    for step in (4, 2):
        training, state = prepare(configure(TrainConfig, given), run, device)  # from the newest
        assert state.step == step
        training.model.eval()
        components = training.components
        with state.ema.applied() if state.ema else nullcontext():
            wanted = seen_by(components.denoiser, components.text_encoders["text_encoder"], "cpu")
        training.log.close()
        assert (wanted - base).abs().max() > 1e-3  # it has learnt something to compare
        assert (shown(f"step-{step:06d}") - wanted).abs().max() < 1e-4
        run.checkpoint(step).rename(run.checkpoints / f"aside-{step}")
    for step in (4, 2):
        (run.checkpoints / f"aside-{step}").rename(run.checkpoint(step))
    assert torch.equal(shown("base"), base)


PLAIN = """
import sys
from contextlib import nullcontext
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
for seed in range(3):
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    generator = torch.Generator().manual_seed(seed)
    pipeline("a turtle", generator=generator, **options).images[0].save(f"{sys.argv[2]}/{seed}.png")
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tiny_base):
    """The base's pictures, by diffusers in a process that knows nothing of this project."""
    folder = tmp_path_factory.mktemp("plain")
    subprocess.run([sys.executable, "-c", PLAIN, tiny_base, folder], check=True, cwd=folder)
    return [np.asarray(Image.open(folder / f"{seed}.png"), int) for seed in range(3)]


def test_the_base_is_the_untouched_base_text_encoder_and_all(trained, monkeypatch, plain):
    monkeypatch.chdir(trained[0])
    sampler = Sampler(Run("pictures"))
    asked = [Request("a turtle", seed, num_inference_steps=2, model="base") for seed in range(3)]
    for image, wanted in zip(sampler.draw(asked), plain, strict=True):
        assert np.abs(np.asarray(image, int) - wanted).max() <= 1


@pytest.mark.parametrize("trained", [n for n in TRAININGS if "text" in n], indirect=True)
def test_a_checkpoint_by_other_versions_of_transformers_shows_the_same(trained, monkeypatch):
    """They name the text encoder's weights with `text_model.`, or without."""
    monkeypatch.chdir(trained[0])
    run = Run("pictures")
    sampler = Sampler(run)
    weights = sampler.weights
    weights.load("step-000004")
    before = {k: v.clone() for k, v in weights.modules["text_encoder"].state_dict().items()}
    path = next(
        p
        for name in ("average", "weights")
        if (p := run.checkpoint(4) / f"{name}.safetensors").is_file()
    )
    original, manifest = path.read_bytes(), run.checkpoint(4) / "manifest.json"
    listed = manifest.read_bytes()
    has = any("text_model" in name for name in before)
    old, new = ("text_encoder.", "text_encoder.text_model.")[:: -1 if has else 1]
    renamed = {k.replace(old, new, 1): v for k, v in load_file(path).items()}
    save_file(renamed, path)
    write_manifest(run.checkpoint(4))
    weights.load("base")
    weights.load("step-000004")
    for name, tensor in weights.modules["text_encoder"].state_dict().items():
        assert torch.equal(tensor, before[name])
    path.write_bytes(original)
    manifest.write_bytes(listed)


def test_a_checkpoint_of_another_model_is_told_and_leaves_the_box_whole(trained, monkeypatch):
    monkeypatch.chdir(trained[0])
    run = Run("pictures")
    sampler = Sampler(run)
    asked = Request("a cat", 1, num_inference_steps=1)
    before = sampler.draw([asked])[0]
    folder = run.checkpoints / "step-000009"
    folder.mkdir()
    state = {"config": read_json(run.checkpoint(4) / "state.json")["config"]}
    (folder / "state.json").write_text(json.dumps(state))
    save_file({"mid_block.wide.weight": torch.zeros(3, 3)}, folder / "weights.safetensors")
    write_manifest(folder)
    with pytest.raises(RunError, match="no weight of this run's base model"):
        sampler.draw([Request("a cat", 1, num_inference_steps=1, model="step-000009")])
    save_file({"conv_in.weight": torch.zeros(3, 3)}, folder / "weights.safetensors")
    write_manifest(folder)
    with pytest.raises(RunError, match="unet.conv_in.weight has another shape"):
        sampler.draw([Request("a cat", 1, num_inference_steps=1, model="step-000009")])
    assert np.array_equal(sampler.draw([asked])[0], before)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
