"""The training's methods, each against diffusers, peft, or itself undisturbed."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from transformers import CLIPTextModel, CLIPTokenizer

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import folder_bytes, read_json, write_json
from helpers.core.records import read_metadata
from helpers.core.run import Run
from helpers.host.device import Device, _attention
from helpers.models.families import sd1
from helpers.train import resources, trainer
from helpers.train.buckets import Crop, nearest_bucket
from helpers.train.checkpoint import TrainingSignature, resume, save
from helpers.train.data import BatchOrder, augmentation_at, image_at, sample_noise_and_timestep
from helpers.train.finish import verify_model
from helpers.train.footprint import random_inputs
from helpers.train.latents import _digest
from helpers.train.limits import machine_errors, memory_advice
from helpers.train.model import build_denoiser
from helpers.train.optim import MovingAverage, TrainState, make_optimizer
from helpers.train.resources import (
    activation_memory,
    estimate_resources,
    latent_side,
    refuse_too_large,
)
from helpers.train.trainer import train
from helpers.train.verdict import best_point, rank_by_loss
from tests.conftest import SMALL_TRAINING, lines, make_dataset, photograph, train_until, typed
from tests.test_train import same, settings, weights

CPU = Device(torch.device("cpu"), "no", "sdpa", ())


def set_aside(run, *names):
    for name in names:
        (run.folder / name).rename(run.folder / f"{name}.before-{len(list(run.folder.iterdir()))}")
    run.verdict.unlink(missing_ok=True)


EVERYTHING = {
    "method": "lora",
    "rank": 4,
    "lora_alpha": 2,
    "train_text_encoder": True,
    "use_ema": True,
    "random_flip": True,
    "crops_per_image": 3,
    "aspect_ratio_buckets": True,
    "noise_offset": 0.1,
    "caption_dropout": 0.5,
    "prior_share": 0.25,
}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_with_everything_on_a_stopped_training_goes_on_to_the_same_bits(dataset, tiny_base, method):
    config = settings(tiny_base, **EVERYTHING | {"method": method, "max_steps": 5})
    list(train(config, dataset))
    undisturbed = weights(dataset)
    text = load_file(dataset.model / "text_encoder/model.safetensors")
    set_aside(dataset, "checkpoints", "model")
    train_until(config, dataset, 4)
    assert [step.step for step in train(config, dataset)][-1] == 5
    assert same(undisturbed, weights(dataset))
    assert same(text, load_file(dataset.model / "text_encoder/model.safetensors"))
    assert not same(text, load_file(tiny_base / "text_encoder/model.safetensors"))
    for lora in dataset.model.glob("lora/*"):
        assert str(tiny_base).encode() not in lora.read_bytes()
    pipeline = DiffusionPipeline.from_pretrained(dataset.model)
    assert pipeline("a cat", num_inference_steps=1).images[0].size == (32, 32)


def test_evaluation_changes_no_bit_of_training(dataset, tiny_base):
    seen = []
    for every in (1, 1000):
        config = settings(tiny_base, validate_every_steps=every, preview_every_steps=every)
        list(train(config, dataset))
        seen.append(weights(dataset))
        set_aside(dataset, "checkpoints", "model")
    assert same(*seen)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU wants a compiler")
@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.soak)])
def test_compiled_blocks_come_to_the_same_losses_and_names(dataset, tiny_base, method):
    seen, names = [], []
    for compiled in (False, True):
        config = settings(tiny_base, method=method, rank=2, torch_compile=compiled)
        counters.clear()
        steps = list(train(config, dataset))
        seen += [[loss for step in steps[1:] for loss in (step.loss, step.held_out_loss) if loss]]
        names.append(list(weights(dataset)))
        set_aside(dataset, "checkpoints", "model")
    assert seen[1] == pytest.approx(seen[0], abs=1e-5)
    assert names[0] == names[1]
    graphs = counters["stats"]["unique_graphs"]
    assert graphs == 2  # of the base's two widths; of nothing that is measured or drawn


@pytest.mark.soak
def test_without_a_compiler_the_setting_is_named(dataset, tiny_base, tmp_path):
    bare = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}
    given = SMALL_TRAINING | {"base_model": tiny_base, "torch_compile": True}
    command = [sys.executable, "-m", "helpers.train", "pictures", *typed(given)]
    done = subprocess.run(command, env=os.environ | bare, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: the model did not compile (") and "no-such-compiler" in last
    assert "set torch_compile to False" in last and "Traceback" not in done.stderr


def test_more_patience_goes_on_from_where_it_stopped_early(dataset, tiny_base):
    given = {"learning_rate": 0.3, "max_steps": 12, "validate_every_steps": 1, "prior_share": 0.0}
    list(train(settings(tiny_base, early_stopping_patience=1, **given), dataset))
    verdict = dataset.read_verdict()
    assert verdict["stopped_early"] and verdict["steps"] < 12
    assert not list(train(settings(tiny_base, early_stopping_patience=1, **given), dataset))
    steps = list(train(settings(tiny_base, early_stopping_patience=12, **given), dataset))
    assert [step.step for step in steps] == list(range(verdict["steps"] + 1, 13))


def test_an_average_in_the_cpus_memory_is_the_same_wherever_it_was_before(dataset, tiny_base):
    config = settings(tiny_base, use_ema=True, ema_decay=0.5)
    list(train(config, dataset))
    undisturbed = load_file(dataset.model / "unet/diffusion_pytorch_model.safetensors")
    set_aside(dataset, "checkpoints", "model")
    train_until(config, dataset, 3)
    list(train(settings(tiny_base, use_ema=True, ema_decay=0.5, offload_ema=True), dataset))
    assert same(undisturbed, load_file(dataset.model / "unet/diffusion_pytorch_model.safetensors"))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loop_logs_the_loss_that_plain_diffusers_computes(dataset, tiny_base, prediction_type):
    """Step 1 again from the files: images and captions through the encoders, noise, UNet, squared error."""
    base = with_scheduler(tiny_base, dataset.folder / "base", prediction_type)
    plain = {"prior_share": 0.0, "caption_dropout": 0.0, "noise_offset": 0.0}
    list(train(settings(base, **plain, max_steps=1), dataset))
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    losses, _ = plain_losses(dataset, base, unet, schedule, range(2))
    assert abs(lines(dataset.train_log)[1]["loss"] - losses.mean().item()) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_second_step_is_what_diffusers_and_peft_come_to(
    dataset, tiny_base, method, prediction_type
):
    """Gradients, min-SNR weights as diffusers' script has them, clipping and AdamW: step 2's loss shows them all."""
    base = with_scheduler(tiny_base, dataset.folder / "base", prediction_type)
    given = {
        "prior_share": 0.0,
        "caption_dropout": 0.0,
        "lr_scheduler": "constant",
        "snr_gamma": 5.0,
    }
    given |= {"lr_warmup_steps": 0, "learning_rate": 1e-2, "max_grad_norm": 0.1, "rank": 4}
    given |= {"noise_offset": 0.0}
    config = settings(base, **given, method=method, max_steps=2)
    list(train(config, dataset))
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").train()
    if method == "lora":
        unet.requires_grad_(False)
        torch.manual_seed(config.seed)
        targets = sd1.LORA_TARGETS[config.lora_targets]
        unet.add_adapter(
            LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
        )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=config.weight_decay)
    schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    for step in range(2):
        losses, weights = plain_losses(dataset, base, unet, schedule, range(2 * step, 2 * step + 2))
        (losses * weights).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        assert abs(lines(dataset.train_log)[step + 1]["loss"] - losses.mean().item()) < 1e-5


def plain_losses(run, base, unet, schedule, positions):
    """The loss of each image, and its min-SNR weight, as train_text_to_image.py computes them."""
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    rows = read_metadata(run.split_metadata("train"))
    picked = [rows[image_at(position, len(rows), 0)] for position in positions]
    pixels = torch.cat([Crop(32).augmentations(run.split("train") / name) for name, _ in picked])
    texts = [text for _, text in picked]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        words = text_encoder(ids)[0]
    draws = [
        sample_noise_and_timestep(position, latents.shape[1:], 1000, 0) for position in positions
    ]
    noise = torch.stack([draw[0] for draw in draws])
    timesteps = torch.tensor([draw[1] for draw in draws])
    predicted = unet(schedule.add_noise(latents, noise, timesteps), timesteps, words).sample
    is_velocity = schedule.config.prediction_type == "v_prediction"
    target = schedule.get_velocity(latents, noise, timesteps) if is_velocity else noise
    snr = compute_snr(schedule, timesteps)
    weights = torch.stack([snr, 5.0 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1 if is_velocity else snr)
    losses = torch.nn.functional.mse_loss(predicted, target, reduction="none")
    return losses.mean(dim=(1, 2, 3)), weights


def with_scheduler(base, folder, prediction_type):
    """The base with another prediction type, as Stable Diffusion 2.1 has."""
    pipeline = DiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_shapes_of_stable_diffusion_2_train_by_the_same_code(dataset, tiny_base, method):
    pipeline = DiffusionPipeline.from_pretrained(tiny_base, safety_checker=None)
    shape = dict(pipeline.unet.config) | {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
    }
    pipeline.unet = UNet2DConditionModel.from_config(shape)
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    pipeline.save_pretrained(dataset.folder / "sd2")
    seen = list(train(settings(dataset.folder / "sd2", method=method, max_steps=2), dataset))
    assert math.isfinite(seen[-1].held_out_loss)
    assert DiffusionPipeline.from_pretrained(dataset.model).scheduler.config.prediction_type == (
        "v_prediction"
    )


def test_the_merged_model_is_the_base_and_the_lora_by_its_alpha(dataset, tiny_base):
    list(train(settings(tiny_base, method="lora", rank=4, lora_alpha=2), dataset))
    lora = load_file(dataset.model / "lora/pytorch_lora_weights.safetensors")
    base = load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")
    down_name = next(k for k in lora if re.search(r"to_q\.lora(_A|\.down)\.weight$", k))
    up_name = down_name.replace("lora_A", "lora_B").replace("lora.down", "lora.up")
    key = re.sub(r"^unet\.|\.lora(_A|\.down)", "", down_name)
    assert lora[up_name].abs().sum() > 0
    wanted = base[key] + 2 / 4 * lora[up_name] @ lora[down_name]
    assert torch.allclose(weights(dataset)[key], wanted, atol=1e-6)


def test_the_moving_average_is_diffusers():
    layer = torch.nn.Linear(3, 3)
    ours = MovingAverage(dict(layer.named_parameters()), decay=0.9, offload=True)
    theirs = EMAModel(layer.parameters(), decay=0.9)
    for step in range(1, 30):
        for p in layer.parameters():
            p.data += torch.randn_like(p)
        ours.update(step)
        theirs.step(layer.parameters())
    for mine, other in zip(ours.average.values(), theirs.shadow_params, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    before = layer.weight.clone()
    with ours.applied():
        assert torch.equal(layer.weight, ours.average["weight"])
    assert torch.equal(layer.weight, before)


def test_the_average_is_what_is_measured_and_exported(dataset, tiny_base):
    config = settings(tiny_base, use_ema=True, learning_rate=1e-2)
    list(train(config, dataset))
    kept = load_file(dataset.checkpoint(4) / "average.safetensors")
    assert same(kept, weights(dataset))
    assert not same(kept, load_file(dataset.checkpoint(4) / "weights.safetensors"))


@pytest.mark.parametrize("sizes", [[10], [7, 3], [1, 5, 30], [4, 4]])
def test_batches_are_of_one_bucket_and_every_image_comes_equally_often(sizes):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    buckets = [list(range(s, s + n)) for s, n in zip(starts, sizes, strict=True)]
    order, count = BatchOrder(buckets, 4, seed=3), sum(sizes)
    batches = [order.batch(number) for number in range(5 * count)]  # 20 epochs
    for batch in batches:
        assert len(batch) == 4 and sum(set(batch) <= set(bucket) for bucket in buckets) == 1
    seen = torch.bincount(torch.tensor(batches).flatten(), minlength=count)
    assert seen.tolist() == [20] * count
    again = BatchOrder(buckets, 4, seed=3)
    assert [again.batch(n) for n in (17, 3, 11)] == [batches[n] for n in (17, 3, 11)]
    if len(sizes) == 1:
        assert batches[6] == [image_at(p, 10, 3) for p in range(24, 28)]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.66, 0.8, 1.0, 1.25, 1.5, 1.91, 3.0, 5.0])
def test_buckets_keep_the_ratio_and_the_area(ratio):
    width, height = nearest_bucket(ratio, 512, 64)
    assert width % 64 == height % 64 == 0 and 0.8 <= width * height / 512**2 <= 1.13
    if 0.5 <= ratio <= 2:
        assert abs(math.log(width / height / ratio)) < 0.07


def test_augmentations_are_crops_along_the_cropped_side_and_their_mirrors(tmp_path):
    path = photograph(tmp_path / "wide.png", 0, size=(96, 32))
    crops = Crop(32, crops=3, flip=True).augmentations(path)
    assert crops.shape == (6, 3, 32, 32)
    assert torch.equal(crops[1], crops[0].flip(-1))
    assert torch.equal(crops[0], Crop(32).augmentations(path)[0])
    whole = Crop(32, step_px=4).augmentations(path)
    assert whole.shape[-1] > 1.6 * whole.shape[-2]
    picked = [augmentation_at(p, 6, 0) for p in range(200)]
    assert set(picked) == set(range(6)) and picked == [augmentation_at(p, 6, 0) for p in range(200)]


def test_a_text_encoders_weights_have_their_own_rate():
    layers = {
        "unet.a": torch.nn.Parameter(torch.ones(1)),
        "text_encoder.b": torch.nn.Parameter(torch.ones(1)),
        "text_encoder_2.b": torch.nn.Parameter(torch.ones(1)),
    }
    config = configure(TrainConfig, run="x", learning_rate=1e-3, text_encoder_lr=1e-5)
    groups = make_optimizer(layers, config).param_groups
    assert [(g["lr"], len(g["params"])) for g in groups] == [(1e-3, 1), (1e-5, 2)]


def test_eight_bit_adam_trains_and_goes_on_or_says_what_to_set(dataset, tiny_base):
    config = settings(tiny_base, optimizer="adamw8bit", max_steps=4)
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(RunError, match="bitsandbytes is not installed: .* 'adamw'"):
            list(train(config, dataset))
        return
    list(train(config, dataset))
    undisturbed = weights(dataset)
    set_aside(dataset, "checkpoints", "model")
    train_until(config, dataset, 3)
    assert [step.step for step in train(config, dataset)][-1] == 4
    assert same(undisturbed, weights(dataset))


def test_the_scalers_state_is_kept(workplace):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    first, second = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    first.scale(torch.ones(()))
    first.update(128.0)
    belongs, named = TrainingSignature({}, "base", "data"), dict(layer.named_parameters())
    rows = [{"step": step} for step in range(4)]
    for _ in rows[1:]:
        optimizer.step()
        schedule.step()
    save(Run("x"), TrainState(named, optimizer, schedule, first, step=3), belongs, rows)
    state = TrainState(named, optimizer, schedule, second)
    resume(Run("x"), state, belongs)
    assert state.step == 3
    assert second.get_scale() == 128.0


def spoil(run, index):
    """Have one image's cached latents be too large for its loss to be a number."""
    (path,) = run.cache.glob("train-images-*.safetensors")
    tensors = load_file(path)
    tensors[f"{index:08d}"].fill_(3e38)
    save_file(tensors, path, {"sha256": _digest(tensors[name] for name in sorted(tensors))})


def test_an_image_without_a_number_is_skipped_and_counted(dataset, tiny_base):
    config = settings(tiny_base, max_steps=9, prior_share=0.0, train_batch_size=1)
    list(train(config, dataset))
    set_aside(dataset, "checkpoints", "model")
    spoil(dataset, 0)
    rows = read_metadata(dataset.split_metadata("train"))
    expected = sum(image_at(p, len(rows), 0) == 0 for p in range(9))
    seen = list(train(config, dataset))
    assert seen[-1].skipped == expected > 0 and math.isfinite(seen[-1].held_out_loss)
    assert all(p.isfinite().all() for p in weights(dataset).values())
    assert f"{expected} steps were skipped" in verify_model(dataset)
    assert read_json(dataset.image_losses)[0]["file_name"] == rows[0][0]


def test_several_in_a_row_name_the_images(dataset, tiny_base):
    config = settings(tiny_base, max_steps=9, prior_share=0.0)
    list(train(config, dataset))
    set_aside(dataset, "checkpoints", "model")
    names = [name for name, _ in read_metadata(dataset.split_metadata("train"))]
    for index in range(len(names)):
        spoil(dataset, index)
    with pytest.raises(
        RunError, match=r"for 5 consecutive steps .*with \w+.*\.jpg.*leave those images out"
    ):
        list(train(config, dataset))


def test_the_best_checkpoint_is_kept_and_exported_where_the_loss_rose(dataset, tiny_base):
    more = {"learning_rate": 0.2, "max_steps": 12, "save_every_steps": 1, "keep_checkpoints": 1}
    list(train(settings(tiny_base, **more, validate_every_steps=1, prior_share=0.0), dataset))
    verdict = read_json(dataset.verdict)
    curve = [(r["step"], r["held_out_loss"]) for r in lines(dataset.train_log)]
    best = best_point(curve)[0]
    assert verdict["rose"] and verdict["exported_step"] == best < 12
    assert {p.name for p in dataset.checkpoints.iterdir()} == {f"step-{best:06d}", "step-000012"}
    assert same(weights(dataset), load_file(dataset.checkpoint(best) / "weights.safetensors"))
    assert f"the model is step {best}'s" in verify_model(dataset)


def test_patience_stops_early_and_the_rerun_does_nothing(dataset, tiny_base):
    more = {"learning_rate": 0.2, "max_steps": 30, "validate_every_steps": 1, "prior_share": 0.0}
    config = settings(tiny_base, **more, early_stopping_patience=2)
    last = list(train(config, dataset))[-1].step
    assert last < 30 and read_json(dataset.verdict)["stopped_early"]
    assert list(train(config, dataset)) == []


def test_another_run_takes_the_same_latents_from_the_first(dataset, tiny_base, pictures):
    list(train(settings(tiny_base, prior_share=0.0), dataset))
    other = make_dataset("other", pictures)
    list(train(settings(tiny_base, run="other", prior_share=0.0), other))
    assert not list(other.cache.glob("*.safetensors"))  # its hashes alone
    assert same(weights(dataset), weights(other))


def test_a_damaged_cache_is_computed_again(dataset, tiny_base):
    list(train(settings(tiny_base), dataset))
    first = weights(dataset)
    set_aside(dataset, "checkpoints", "model")
    for path in dataset.cache.glob("*"):
        path.write_bytes(path.read_bytes()[:-9])
    list(train(settings(tiny_base), dataset))
    assert same(first, weights(dataset))


def test_what_cannot_fit_is_refused_with_the_setting_to_change(dataset, full_size):
    config = configure(
        TrainConfig, run="pictures", preset="a100", base_model=str(full_size), train_batch_size=256
    )
    with pytest.raises(RunError, match="GB of memory and there are .* set gradient_checkpointing"):
        refuse_too_large(config, dataset, CPU)


def test_the_estimate_counts_memory_and_times_steps(dataset, tiny_base):
    state = torch.get_rng_state()
    said = estimate_resources(settings(tiny_base), dataset, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert said.trained == said.parameters > 10_000 and said.steps_per_s > 0
    assert said.checkpoint_gb == pytest.approx(said.trained * 12 / 1e9)
    assert "GB counted" in str(said) and "of steps at" in str(said)
    more = settings(tiny_base, prior_share=4.0, validate_every_steps=1, num_inference_steps=50)
    longer = estimate_resources(more, dataset, CPU)
    assert longer.hours - longer.step_hours > 5 * (said.hours - said.step_hours) > 0


def test_checkpoints_that_are_there_are_no_reason_to_refuse_the_next(
    dataset, tiny_base, monkeypatch
):
    config = settings(tiny_base)
    list(train(config, dataset))
    needed = 4 * estimate_resources(config, dataset, CPU).checkpoint_gb * 1e9
    free = int(needed - folder_bytes(dataset.checkpoints) / 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(resources, "remote_room_bytes", lambda _: math.inf)
    refuse_too_large(config, dataset, CPU)
    shutil.rmtree(dataset.checkpoints)
    with pytest.raises(RunError, match="4 checkpoints of .* do not fit"):
        refuse_too_large(config, dataset, CPU)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_trained_in_half_precision_draws_by_the_cards_own_lines(
    dataset, tiny_base, monkeypatch, method
):
    half = Device(torch.device("cpu"), "bf16", "sdpa", ())
    monkeypatch.setattr(trainer, "pick_device", lambda *_: half)
    list(train(settings(tiny_base, method=method, rank=4), dataset))
    saved = load_file(dataset.model / "text_encoder/model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    pipeline = DiffusionPipeline.from_pretrained(dataset.model)
    assert pipeline("a cat", num_inference_steps=1).images[0].size == (32, 32)
    pipeline = DiffusionPipeline.from_pretrained(dataset.model, torch_dtype=torch.bfloat16)
    assert pipeline("a cat", num_inference_steps=1).images[0].size == (32, 32)


def test_trainings_of_two_precisions_fit_into_one_process(dataset, tiny_base, monkeypatch):
    for precision in ("bf16", "no"):
        device = Device(torch.device("cpu"), precision, "sdpa", ())
        monkeypatch.setattr(trainer, "pick_device", lambda *_, device=device: device)
        list(train(settings(tiny_base, mixed_precision=precision), dataset))
        set_aside(dataset, "checkpoints", "model")


def test_no_limit_on_gradients_clips_nothing(dataset, tiny_base):
    list(train(settings(tiny_base, max_grad_norm=0.0, weight_decay=0.0), dataset))
    base = load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")
    assert not same(base, weights(dataset))


def test_without_a_suffix_no_sample_of_the_base_says_the_same_words(dataset, tiny_base):
    write_json(dataset.config("dataset"), dataset.read_config("dataset") | {"suffix": ""})
    list(train(settings(tiny_base, prior_share=1.0), dataset))
    assert not list(dataset.cache.glob("prior-*"))


def test_samples_of_the_base_are_of_its_schedule_as_well(dataset, tiny_base):
    for kind in ("epsilon", "v_prediction"):
        base = with_scheduler(tiny_base, dataset.folder / kind, kind)
        list(train(settings(base, prior_share=0.5), dataset))
        set_aside(dataset, "checkpoints", "model")
    assert len(list(dataset.cache.glob("prior-images-*"))) == 2


def allocated_at_peak(act):
    """PyTorch's own record of what its CPU allocator gave out, at its highest, in bytes."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        act()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(
    "more",
    [
        {"train_batch_size": 1},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 2},
        {"method": "lora", "train_text_encoder": True},
    ],
)
def test_the_memory_counted_is_what_the_allocator_gives_out(tiny_base, more):
    config = settings(tiny_base, **{"train_batch_size": 4, **more})
    module = build_denoiser(config, CPU.dtype).train()
    inputs = random_inputs(module, config.train_batch_size, latent_side(config))

    def act():
        for _ in range(config.gradient_accumulation_steps):
            module(*inputs).square().mean().backward()

    act()
    module.zero_grad()
    assert activation_memory(config, CPU) == pytest.approx(allocated_at_peak(act), rel=0.05)


def test_checkpointing_is_counted_as_less_memory(full_size):
    given = {"run": "x", "preset": "a100", "train_batch_size": 1, "base_model": str(full_size)}
    kept, again = (
        activation_memory(configure(TrainConfig, given, gradient_checkpointing=on), CPU)
        for on in (False, True)
    )
    assert again < kept


def test_memory_that_runs_out_names_the_setting():
    config = configure(TrainConfig, run="x", preset="t4-full")
    with pytest.raises(RunError, match="out of memory .*offload|lora"), machine_errors(config):
        torch.empty(2**58)
    with pytest.raises(RunError, match="set method to 'lora'"), machine_errors(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    for silent in (
        MemoryError(),
        torch.OutOfMemoryError(),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        with pytest.raises(RunError, match="out of memory .*lora"), machine_errors(config):
            raise silent
    with pytest.raises(RuntimeError, match="size"), machine_errors(config):
        torch.ones(2) @ torch.ones(3)


def test_a_tracker_that_is_not_installed_is_named(dataset, tiny_base):
    with pytest.raises(RunError, match="tracker is 'aim', which is not installed"):
        list(train(settings(tiny_base, tracker="aim"), dataset))
    list(train(settings(tiny_base, tracker="none"), dataset))
    assert not dataset.tensorboard.exists()


def test_weights_and_biases_is_told_of_one_training_however_often_it_is_resumed(
    dataset, tiny_base, monkeypatch
):
    """The real client, which keeps for later what it cannot send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    list(train(settings(tiny_base, tracker="wandb"), dataset))
    list(train(settings(tiny_base, tracker="wandb", max_steps=6), dataset))
    kept = sorted(dataset.folder.glob("wandb/offline-run-*"))
    assert len(kept) == 2 and len({path.name.rsplit("-", 1)[1] for path in kept}) == 1
    written = b"".join(path.read_bytes() for path in dataset.folder.glob("wandb/*/run-*.wandb"))
    for name in (b"held_out_loss", b"learning_rate", b"validation_pairs"):
        assert name in written
    assert list(dataset.folder.glob("wandb/*/files/media/images/previews_*"))
    assert [row["step"] for row in lines(dataset.train_log)] == list(range(7))


def test_attention_without_xformers_with_it_and_where_it_cannot_run(tmp_path, monkeypatch):
    """The meta device stands for one on which a kernel runs, CUDA on a CPU's torch for one on which none does."""
    meta, cuda = torch.device("meta"), torch.device("cuda")
    if importlib.util.find_spec("xformers") and not torch.cuda.is_available():  # Colab's own
        assert "xformers does not run here (" in _attention(meta, "xformers")[1]
    for name in [name for name in sys.modules if name.split(".")[0] == "xformers"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xformers", None)
        assert _attention(meta, "xformers") == ("sdpa", "sdpa: xformers is not installed")
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers/__init__.py").write_text("")
    (tmp_path / "xformers/ops.py").write_text("def memory_efficient_attention(*_): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert _attention(meta, "xformers")[0] == "xformers"
    assert _attention(meta, "auto")[0] == "sdpa"
    if not torch.cuda.is_available():
        for wanted in ("xformers", "auto"):
            chosen, why = _attention(cuda, wanted)
            assert chosen == "sdpa" and "xformers does not run here" in why


@pytest.mark.parametrize(
    "fault",
    [
        "raise NotImplementedError",
        "assert False",
        "raise OSError('libcudart.so.12: cannot open shared object file')",
        "raise ImportError('built for another torch')",
        "pass",  # and there is no memory_efficient_attention
    ],
)
def test_an_xformers_that_fails_in_its_own_way_is_told_and_is_no_error(
    tmp_path, monkeypatch, fault
):
    (tmp_path / "xformers").mkdir()
    (tmp_path / "xformers/__init__.py").write_text("")
    (tmp_path / "xformers/ops.py").write_text(f"{fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("xformers", "xformers.ops"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for wanted in ("xformers", "auto"):
        chosen, why = _attention(torch.device("meta"), wanted)
        assert chosen == "sdpa" and "xformers does not run here (" in why and "\n" not in why


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"train_batch_size": 3}, "train_batch_size to 1 and gradient_accumulation_steps to 3"),
        ({"train_batch_size": 4}, "train_batch_size to 2 and gradient_accumulation_steps to 2"),
        (
            {"train_batch_size": 4, "aspect_ratio_buckets": True},
            "gradient_accumulation_steps to 2, which changes what is learned",
        ),
        (
            {"train_batch_size": 4, "optimizer_in_backward": True},
            "train_batch_size to 2, which changes what is",
        ),
        ({"train_batch_size": 1, "method": "full"}, "adamw8bit', which changes what is learned"),
    ],
)
def test_what_to_change_goes_on_from_a_checkpoint_or_says_that_it_does_not(given, advice):
    config = configure(TrainConfig, run="x", gradient_checkpointing=True, **given)
    assert advice in memory_advice(config)


def test_the_worst_fitting_come_first():
    rows = rank_by_loss(["a", "b", "c"], [0.1, math.nan, 0.3])
    assert [row["file_name"] for row in rows] == ["b", "c", "a"]
