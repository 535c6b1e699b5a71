"""A base is its weights: they decide what is resumed, and all that latents depend on decides what a cache gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from safetensors.torch import load_file, save_file

from helpers.core.errors import RunError
from helpers.host.device import pick_device
from helpers.models.objective import Ddpm
from helpers.train.data import LatentDataset
from helpers.train.latents import _digest
from helpers.train.model import load_components
from helpers.train.trainer import train
from helpers.train.validation_loss import ValidationLoss
from tests.conftest import lines, train_until
from tests.test_train import same, settings, weights


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_aside(run) -> None:
    for name in ("checkpoints", "model"):
        (run.folder / name).rename(run.folder / f"{name}.before-{len(list(run.folder.iterdir()))}")
    run.verdict.unlink(missing_ok=True)


def test_a_training_goes_on_with_the_same_weights_from_another_path(dataset, tiny_base, tmp_path):
    list(train(settings(tiny_base), dataset))
    undisturbed = weights(dataset)
    set_aside(dataset)
    train_until(settings(tiny_base), dataset, 3)
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    assert [step.step for step in train(settings(moved), dataset)] == [3, 4]
    assert same(undisturbed, weights(dataset))


def test_an_ended_training_with_its_base_at_another_path_is_not_begun_anew(
    dataset, tiny_base, tmp_path
):
    list(train(settings(tiny_base), dataset))
    before, log = weights(dataset), dataset.train_log.read_text()
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    assert list(train(settings(moved), dataset)) == []
    assert same(before, weights(dataset)) and dataset.train_log.read_text() == log


def test_other_weights_at_the_same_path_are_refused(dataset, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    train_until(settings(base), dataset, 3)
    path = base / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: 1.5 * tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(RunError, match="the base model was another"):
        list(train(settings(base), dataset))


# what latents depend on


def validation_loss(base, run, **given) -> float:
    """Of step 0: the base model's."""
    steps = train(settings(base, prior_share=0.0, **given), run)
    loss = next(steps).held_out_loss
    steps.close()
    return loss


DEPENDS = {
    "scaling_factor": lambda b: edit(b / "vae/config.json", scaling_factor=1.5),
    "an activation": lambda b: edit(b / "text_encoder/config.json", hidden_act="gelu_new"),
}


@pytest.mark.parametrize("what", DEPENDS)
def test_a_cache_gives_nothing_that_other_settings_made(dataset, tiny_base, tmp_path, what):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    stale = validation_loss(base, dataset)
    DEPENDS[what](base)
    mended = validation_loss(base, dataset)
    shutil.rmtree(dataset.cache)
    assert validation_loss(base, dataset) == mended != stale


def test_mended_settings_of_the_vae_do_not_go_into_a_training_under_way(
    dataset, tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    train_until(settings(base), dataset, 3)
    DEPENDS["scaling_factor"](base)
    with pytest.raises(RunError, match="the base model's scaling_factor was another"):
        list(train(settings(base), dataset))


def test_prior_samples_are_drawn_anew_where_the_schedule_draws_otherwise(
    dataset, tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for spacing in ("leading", "trailing"):
        edit(base / "scheduler/scheduler_config.json", timestep_spacing=spacing)
        next(train(settings(base), dataset))
    assert len(list(dataset.cache.glob("prior-images-*"))) == 2
    assert len(list(dataset.cache.glob("train-images-*"))) == 1


def test_nan_in_prior_latents_is_told_and_not_kept(dataset, tiny_base, tmp_path):
    """A UNet whose weights are whole and whose output is not, as in fp16."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    path = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"] *= 0
    tensors["conv_out.weight"] += 3e38
    save_file(tensors, path)
    with pytest.raises(RunError, match="NaN or inf in the base's sample of 'a picture .*'"):
        next(train(settings(base), dataset))
    assert not list(dataset.cache.glob("prior-images-*"))


def test_nan_in_an_older_cache_is_computed_again(dataset, tiny_base):
    list(train(settings(tiny_base), dataset))
    undisturbed = weights(dataset)
    path = next(dataset.cache.glob("prior-images-*"))
    spoilt = {name: tensor.fill_(torch.nan) for name, tensor in load_file(path).items()}
    save_file(spoilt, path, {"sha256": _digest(spoilt[name] for name in sorted(spoilt))})
    set_aside(dataset)
    list(train(settings(tiny_base), dataset))
    assert same(undisturbed, weights(dataset))


# what is measured


def few(count: int) -> LatentDataset:
    texts = {"encoder_hidden_states": torch.zeros(count, 2, 3)}
    return LatentDataset([torch.zeros(4, 4, 4)] * count, texts)


@pytest.mark.parametrize("count", [5, 256, 257, 300, 511, 1000, 4000])
def test_the_measured_images_are_spread_over_all(count):
    index = ValidationLoss(few(count), Ddpm(DDPMScheduler()), 0, 256).images
    assert len(index) == 256 and len(index.unique()) == min(count, 256)
    gaps = index.unique().diff()
    assert index.min() == 0 and index.max() >= count - 1 - count / 256
    assert gaps.max() - gaps.min() <= 1


ZERO_SNR = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_numbers_at_a_zero_terminal_snr(kind):
    schedule = DDPMScheduler(**ZERO_SNR, prediction_type=kind)
    assert schedule.alphas_cumprod[-1] == 0
    found = Ddpm(schedule).loss_weights(torch.arange(1000), 5.0)
    assert found.isfinite().all() and found.min() >= 0 and found.max() <= 1
    assert found[-1] == (1 if kind == "epsilon" else 0)


def test_v_prediction_with_zero_terminal_snr_trains_and_is_kept(dataset, tiny_base):
    """All losses are numbers, and at the last timestep there is noise alone, whose velocity is the picture."""
    pipeline = DiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    base = dataset.folder / "zero"
    pipeline.save_pretrained(base)
    edit(
        base / "scheduler/scheduler_config.json",
        **ZERO_SNR,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
    list(train(settings(base, method="lora", rank=2, max_steps=3), dataset))
    rows = lines(dataset.train_log)
    assert all("loss" in row for row in rows[1:]) and len(rows) == 4
    saved = DDPMScheduler.from_pretrained(dataset.model, subfolder="scheduler")
    assert saved.alphas_cumprod[-1] == 0 and saved.config.prediction_type == "v_prediction"
    noise, clean = torch.randn(2, 1, 4, 8, 8)
    last = torch.tensor([999])
    assert torch.allclose(saved.add_noise(clean, noise, last), noise)
    assert torch.allclose(saved.get_velocity(clean, noise, last), -clean)


@pytest.mark.parametrize(
    ("spacing", "kind"),
    [
        ("leading", {}),
        ("linspace", {}),
        ("leading", {"beta_schedule": "squaredcos_cap_v2"}),
        ("trailing", ZERO_SNR),
    ],
)
def test_previews_are_drawn_at_any_number_of_steps(tiny_base, tmp_path, spacing, kind):
    """With a step a timestep DPM-Solver++ leaves the schedule; of ten timesteps, so that it is quick."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    few = {"num_train_timesteps": 10, "timestep_spacing": spacing, "steps_offset": 1}
    if kind is ZERO_SNR:
        few |= {"prediction_type": "v_prediction"}
    edit(base / "scheduler/scheduler_config.json", **few | kind)
    parts = load_components(str(base), pick_device())
    for steps in (1, 2, 8, 9, 10, 12):
        config = settings(base, num_inference_steps=steps)
        generator = torch.Generator().manual_seed(0)
        assert parts.draw(config, ["a cat"], [generator], "latent").isfinite().all(), steps
