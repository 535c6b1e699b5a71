import os
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.host.device import Device, pick_device
from helpers.models.families import sd1
from helpers.models.objective import Ddpm
from helpers.train.data import LatentDataset, image_at, sample_noise_and_timestep
from helpers.train.finish import verify_model
from helpers.train.latents import encode_texts
from helpers.train.loss import diffusion_loss
from helpers.train.model import Denoiser, load_components
from helpers.train.preview import draw_previews
from helpers.train.trainer import train
from helpers.train.validation_loss import ValidationLoss
from helpers.train.verdict import judge
from tests.conftest import ON_EACH_FAMILY, SMALL_TRAINING, lines, make_dataset, train_until, typed
from tests.kills import forked


def settings(tiny_base, **more):
    given = {"run": "pictures", "base_model": str(tiny_base), **SMALL_TRAINING, **more}
    return configure(TrainConfig, given)


def weights(run):
    return load_file(run.model / "unet/diffusion_pytorch_model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@ON_EACH_FAMILY
@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_leaves_the_run_folder_and_a_model_that_draws(dataset, tiny_base, method):
    seen = list(train(settings(tiny_base, method=method), dataset))
    assert [step.step for step in seen] == [0, 1, 2, 3, 4]
    assert [step.step for step in seen if step.held_out_loss is not None] == [0, 2, 4]
    assert [row["step"] for row in lines(dataset.train_log)] == [0, 1, 2, 3, 4]
    assert {p.name for p in dataset.previews.iterdir()} == {"step-000000.png", "step-000004.png"}
    assert {p.name for p in dataset.checkpoints.iterdir()} == {"step-000002", "step-000004"}
    assert list(dataset.tensorboard.glob("events*"))
    assert (dataset.model / "lora/pytorch_lora_weights.safetensors").is_file() == (method == "lora")
    assert "is complete: validation loss" in verify_model(dataset)
    pipeline = DiffusionPipeline.from_pretrained(dataset.model)
    picture = pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0]
    assert picture.size == (32, 32)
    base = load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")
    assert not same(base, weights(dataset))  # a no-op training would pass all of the above


def test_a_rerun_of_an_ended_training_does_nothing(dataset, tiny_base):
    list(train(settings(tiny_base), dataset))
    before = dataset.train_log.stat().st_mtime_ns
    assert list(train(settings(tiny_base, save_every_steps=3), dataset)) == []
    assert dataset.train_log.stat().st_mtime_ns == before


def test_more_steps_go_on_and_fewer_are_there_already(dataset, tiny_base):
    list(train(settings(tiny_base), dataset))
    assert list(train(settings(tiny_base, max_steps=2), dataset)) == []
    assert [step.step for step in train(settings(tiny_base, max_steps=6), dataset)] == [5, 6]
    assert [row["step"] for row in lines(dataset.train_log)] == list(range(7))


@ON_EACH_FAMILY
def test_a_killed_training_goes_on_to_the_same_bits(dataset, tiny_base):
    kill_and_compare(dataset, tiny_base, stops=(1, 3, 5), steps=7)


@pytest.mark.soak
def test_forty_kills_change_no_bit(dataset, tiny_base):
    stops = [
        int(s) for s in torch.randint(1, 60, (40,), generator=torch.Generator().manual_seed(0))
    ]
    kill_and_compare(dataset, tiny_base, stops=sorted(stops), steps=60)


def die_after(stop, config, run):
    for step in train(config, run):
        if step.step >= stop:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_and_compare(run, tiny_base, stops, steps):
    """Train undisturbed, then again with a SIGKILL after each of `stops`, and compare the weights' bits."""
    more = {
        "max_steps": steps,
        "caption_dropout": 0.5,
        "noise_offset": 0.1,
        "validate_every_steps": 20,
    }
    config = settings(tiny_base, **more)
    list(train(config, run))
    undisturbed = weights(run)
    for name in ("checkpoints", "model"):
        (run.folder / name).rename(run.folder / f"{name}.first")
    run.verdict.unlink()
    for stop in stops:
        child = forked(partial(die_after, stop, config, run))
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(train(config, run))[-1].step == steps
    assert same(undisturbed, weights(run))
    assert [row["step"] for row in lines(run.train_log)] == list(range(steps + 1))


def test_two_processes_see_the_same_images_and_reach_the_same_loss(dataset, tiny_base, pictures):
    """Two CPU processes by gloo, against one process with the same batch.

    torchrun starts them, since `accelerate launch` does so on CPUs by MPI alone.
    """
    list(train(settings(tiny_base, train_batch_size=4), dataset))
    twin = make_dataset("twin", pictures)
    given = {**SMALL_TRAINING, "base_model": tiny_base, "train_batch_size": 2}
    launch = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()]
    command = [*launch, "-m", "helpers.train", "twin", *typed(given)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, together = lines(dataset.train_log), lines(twin.train_log)
    assert [row["step"] for row in together] == [0, 1, 2, 3, 4]
    for one, two in zip(alone[1:], together[1:], strict=True):
        assert abs(one["loss"] - two["loss"]) < 1e-4


def test_a_damaged_checkpoint_is_passed_over(dataset, tiny_base):
    config = settings(tiny_base, max_steps=6)
    train_until(config, dataset, 5)
    newest = dataset.checkpoint(4) / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    assert [step.step for step in train(config, dataset)][0] == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 5e-4}, "learning_rate was 0.001, not 0.0005"),
        ({"seed": 5}, "seed was 0, not 5"),
    ],
)
def test_another_training_in_the_same_run_is_refused(dataset, tiny_base, change, words):
    list(train(settings(tiny_base), dataset))
    with pytest.raises(RunError, match=words) as caught:
        list(train(settings(tiny_base, **change), dataset))
    assert "a run name of its own" in str(caught.value) and find_corruption(dataset.model) is None


def test_training_before_03_names_the_notebook(workplace, tiny_base):
    with pytest.raises(RunError, match="run 03_dataset with run='none' first"):
        list(train(settings(tiny_base, run="none"), Run("none")))


def test_a_base_that_is_not_there_says_what_to_give(dataset, tmp_path):
    (tmp_path / "empty").mkdir()
    for base in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(
            RunError, match="could not be loaded .*: give a hub id such as"
        ) as caught:
            list(train(settings(base), dataset))
        assert "\n" not in str(caught.value)


def test_a_full_size_model_without_a_gpu_says_its_price_and_stops(dataset, full_size):
    """Stable Diffusion v1-5's own UNet configuration, of which no weights are needed to say so."""
    given = {"run": "pictures", "preset": "t4", "base_model": str(full_size)}
    with pytest.raises(
        RunError, match=r"has 860 M parameters and there is no GPU here: 2000 steps of about \d+ s"
    ):
        list(train(configure(TrainConfig, given), dataset))
    assert not dataset.config("train").exists()


@pytest.fixture
def broken_base(tiny_base, tmp_path):
    """A base model whose weights are numbers, too large for its loss to be one."""
    shutil.copytree(tiny_base, tmp_path / "broken")
    path = tmp_path / "broken/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(
        tensors | {"conv_out.bias": torch.full_like(tensors["conv_out.bias"], 3e38)},
        path,
        {"format": "pt"},
    )
    return tmp_path / "broken"


def test_a_loss_that_is_no_number_stops_the_run(dataset, broken_base):
    with pytest.raises(
        RunError, match="loss was NaN or inf for 5 consecutive steps .*lower learning_rate"
    ):
        list(train(settings(broken_base, max_steps=9, prior_share=0.0), dataset))


def tiny_problem(prediction_type="epsilon"):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    schedule = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    latents, noise, texts = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.randn(3, 5, 8)
    return unet, schedule, latents, texts, noise, torch.tensor([3, 400, 990])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_what_plain_diffusers_computes(prediction_type):
    unet, schedule, latents, texts, noise, timesteps = tiny_problem(prediction_type)
    model, words = Denoiser(sd1, {}, unet, {}), {"encoder_hidden_states": texts}
    ours = diffusion_loss(model, Ddpm(schedule), latents, noise, timesteps, **words)
    alpha = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = (
        noise
        if prediction_type == "epsilon"
        else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    )
    theirs = (
        (unet(noisy, timesteps, encoder_hidden_states=texts).sample - target).pow(2).mean((1, 2, 3))
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_min_snr_weights_are_the_papers():
    _, schedule, *_, timesteps = tiny_problem()
    alpha = schedule.alphas_cumprod[timesteps]
    snr = alpha / (1 - alpha)
    found = Ddpm(schedule).loss_weights(timesteps, 5.0)
    assert torch.allclose(found, torch.clamp(snr, max=5) / snr, rtol=1e-4)
    assert Ddpm(schedule).loss_weights(timesteps, 0.0).tolist() == [1, 1, 1]


def test_the_fixed_loss_gives_the_same_bits_and_leaves_random_state_alone():
    unet, schedule, latents, texts, *_ = tiny_problem()
    examples = LatentDataset(latents, {"encoder_hidden_states": texts})
    fixed = ValidationLoss(examples, Ddpm(schedule), seed=0, num_eval_samples=12)
    state = torch.get_rng_state()
    device, model = pick_device(), Denoiser(sd1, {}, unet, {})
    model.to(device.device)
    assert fixed(model, device) == fixed(model, device)
    assert torch.equal(state, torch.get_rng_state()) and unet.training


def test_parts_in_half_precision_sample_and_measure_beside_trained_ones_in_full(tiny_base):
    """As on a GPU: the UNet in float32, all that is frozen in half, autocast in between."""
    half = Device(torch.device("cpu"), "bf16", "sdpa", ())
    parts = load_components(str(tiny_base), half)
    assert parts.vae.dtype == torch.bfloat16 and parts.denoiser.dtype == torch.float32
    (image,) = draw_previews(parts, settings(tiny_base), ["a cat"])
    assert image.size == (32, 32)
    examples = LatentDataset(torch.randn(2, 4, 16, 16), encode_texts(parts, ["a", "b"]))
    measure = ValidationLoss(examples, parts.objective, seed=0, num_eval_samples=8)
    model = Denoiser.of(parts, with_text=False)
    in_full = measure(model, Device(torch.device("cpu"), "no", "sdpa", ()))
    assert abs(measure(model, half) - in_full) < 0.02 * in_full


def test_every_image_comes_once_an_epoch_in_another_order():
    epochs = [[image_at(p, 10, seed=3) for p in range(e * 10, e * 10 + 10)] for e in range(5)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_draws_depend_on_the_position_alone():
    first = sample_noise_and_timestep(17, torch.Size((4, 8, 8)), 1000, 0)
    sample_noise_and_timestep(18, torch.Size((4, 8, 8)), 1000, 0)
    again = sample_noise_and_timestep(17, torch.Size((4, 8, 8)), 1000, 0)
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:]
    steps = [sample_noise_and_timestep(p, torch.Size((1,)), 1000, 0)[1] for p in range(2000)]
    assert 450 < sum(steps) / 2000 < 550 and min(steps) < 10 and max(steps) > 990


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, 0.6, 0.4, 0.3, 0.25], "still learning"),
        ([1.0, 0.4, 0.31, 0.302, 0.3], "converged"),
        ([1.0, 0.3, 0.4, 0.5, 0.6], "overfitting since step 100"),
        ([1.0, 0.5], "still learning"),
        ([1.0, 0.7, 0.4], "still learning"),
        ([1.0, 0.5, 0.5], "converged"),
        ([1.0], "converged"),
        ([1.0, 0.6, 0.4, 0.3, 0.32], "converged"),  # a single rise may be chance
        ([1.0, 0.38, 0.35, 0.33, 0.36, 0.34, 0.335], "converged"),  # it fell to no new low
        ([1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.15], "converged"),
    ],
)
def test_the_verdict_reads_the_held_out_curve(losses, words):
    verdict = judge([(100 * i, loss) for i, loss in enumerate(losses)])
    assert verdict.words.startswith(words) and verdict.base == 1.0


def test_a_cpu_trains_in_full_precision_and_says_why():
    device = pick_device("fp16", "auto")
    if device.device.type == "cpu":
        assert device.precision == "no" and "no GPU" in str(device)
