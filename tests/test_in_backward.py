"""The optimizer in the backward pass, and bf16 weights with stochastic rounding."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.train import trainer
from helpers.train.checkpoint import TrainingSignature, resume, save
from helpers.train.in_backward import StepInBackward, check_settings, round_stochastically
from helpers.train.optim import MovingAverage, TrainState
from helpers.train.resources import activation_memory
from helpers.train.trainer import train
from tests.conftest import lines, train_until
from tests.test_train import same, settings, weights

IN_BACKWARD = {"optimizer_in_backward": True, "gradient_accumulation_steps": 1}
BF16 = IN_BACKWARD | {"weights_dtype": "bf16", "mixed_precision": "bf16"}


def losses(run):
    return [row["loss"] for row in lines(run.train_log)[1:]]


def trained(dataset, tiny_base, **given):
    list(train(settings(tiny_base, **given), dataset))
    found = losses(dataset), weights(dataset)
    for folder in (dataset.checkpoints, dataset.model):
        folder.rename(
            folder.with_name(f"aside-{folder.name}-{len(list(dataset.folder.iterdir()))}")
        )
    return found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_without_clipping_it_trains_as_the_ordinary_step_does(dataset, tiny_base, method):
    given = {"max_grad_norm": 0.0, "method": method, "gradient_accumulation_steps": 1}
    plain = trained(dataset, tiny_base, **given)
    inside = trained(dataset, tiny_base, **given, optimizer_in_backward=True)
    assert inside[0] == pytest.approx(plain[0], rel=1e-5)
    for name, weight in plain[1].items():
        assert torch.allclose(weight, inside[1][name], atol=1e-6), name


def test_a_stopped_training_goes_on_to_the_same_bits(dataset, tiny_base):
    config = settings(tiny_base, **IN_BACKWARD, max_grad_norm=0.01, use_ema=True, max_steps=5)
    list(train(config, dataset))
    undisturbed = weights(dataset)
    for folder in (dataset.checkpoints, dataset.model):
        folder.rename(folder.with_name(f"aside-{folder.name}"))
    train_until(config, dataset, 3)
    list(train(config, dataset))
    assert same(undisturbed, weights(dataset))


def half_state():
    """A training of one layer in bf16, whose gradients are computed without a matrix product."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8).bfloat16()
    named = dict(layer.named_parameters())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    ema = MovingAverage(named, 0.9, False)
    inside = StepInBackward(optimizer, layer.parameters(), max_grad_norm=0.5)
    return TrainState(named, optimizer, schedule, None, ema, in_backward=inside)


def advance(state, steps):
    for _ in range(steps):
        sum(p.float().square().sum() for p in state.weights.values()).backward()
        state.in_backward.end_step()
        state.lr_scheduler.step()
        state.step += 1
        state.ema.update(state.step)


def test_bf16_weights_resume_to_the_same_bits(workplace):
    run, signature = Run("half"), TrainingSignature({}, "base", "data")
    undisturbed, stopped, resumed = half_state(), half_state(), half_state()
    advance(undisturbed, 5)
    advance(stopped, 3)
    save(run, stopped, signature, [{"step": step} for step in range(4)])
    kept = load_file(run.checkpoint(3) / "weights.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    resume(run, resumed, signature)
    advance(resumed, 2)
    assert resumed.step == 5
    for name, weight in undisturbed.weights.items():
        assert torch.equal(weight, resumed.weights[name])
        assert torch.equal(undisturbed.ema.average[name], resumed.ema.average[name])
        moments = [s.optimizer.state[s.weights[name]]["exp_avg"] for s in (undisturbed, resumed)]
        assert torch.equal(*moments) and moments[1].dtype == torch.float32


def test_bf16_weights_train_to_an_export(dataset, tiny_base, monkeypatch):
    half = replace(pick_device("no", "auto", "auto"), precision="bf16")  # as a GPU with bf16
    monkeypatch.setattr(trainer, "pick_device", lambda *_: half)
    list(train(settings(tiny_base, **BF16), dataset))
    verdict = dataset.read_verdict()
    assert verdict["last"] == pytest.approx(verdict["base"], rel=0.1)
    assert {t.dtype for t in load_file(dataset.checkpoint(4) / "weights.safetensors").values()} == {
        torch.bfloat16
    }


def test_rounding_is_right_on_average_and_the_same_for_a_key():
    values = torch.full((200_000,), 1.0 + 2**-7 / 4)  # a quarter of the way to the next bf16 number
    rounded = round_stochastically(values, "a key")
    assert rounded.dtype == torch.bfloat16 and len(rounded.unique()) == 2
    assert abs(rounded.double().mean() - values.double().mean()) < 1e-4
    assert torch.equal(rounded, round_stochastically(values, "a key"))
    assert not torch.equal(rounded, round_stochastically(values, "another"))
    exact = torch.tensor([0.0, -1.5, 2.0**127, float("inf"), float("-inf"), float("nan")])
    assert torch.equal(
        round_stochastically(exact, "x").float().nan_to_num(7),
        exact.bfloat16().float().nan_to_num(7),
    )


def test_a_small_update_is_not_lost_in_bf16():
    """At a rate of 1e-5, rounding to nearest leaves a weight of 1 where it is; on average it moves."""
    layer = torch.nn.Linear(64, 64, bias=False).bfloat16()
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-5, weight_decay=0.0)
    steps = StepInBackward(optimizer, layer.parameters(), 0.0)
    for _ in range(200):
        layer(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
        steps.end_step()
    assert layer.weight.float().mean().item() == pytest.approx(1 - 200e-5, abs=3e-4)
    assert layer.weight.grad is None


def test_a_gradient_is_clipped_by_the_larger_of_the_last_norm_and_the_norm_so_far():
    layer = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    steps = StepInBackward(optimizer, layer.parameters(), 1.0)
    moved = []
    for size in (10.0, 2.0, 0.5):
        before = layer.weight.item()
        (layer(torch.ones(1, 1)) * size).sum().backward()
        moved.append(before - layer.weight.item())
        assert steps.end_step().item() == pytest.approx(size)
    assert moved == pytest.approx([1.0, 0.2, 0.25], abs=1e-5)  # 10/10, 2/10, 0.5/2


def test_a_gradient_without_a_number_leaves_the_weights_finite_and_lowers_the_scale():
    layer = torch.nn.Linear(4, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    steps = StepInBackward(torch.optim.AdamW(layer.parameters()), layer.parameters(), 1.0, scaler)
    scaler.scale(layer(torch.full((1, 4), float("inf"))).sum()).backward()
    assert not steps.end_step().isfinite() and scaler.get_scale() == 512.0
    assert all(p.isfinite().all() for p in layer.parameters())
    scaler.scale(layer(torch.ones(1, 4)).sum()).backward()
    assert steps.end_step().isfinite() and scaler.get_scale() == 512.0


def test_a_nan_in_one_gradient_spoils_no_other_weight():
    first, last = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([first, last], lr=0.1)
    steps = StepInBackward(optimizer, [first, last], 1.0)
    finite = (first * 2).sum()
    middle = last * 1.0  # its gradient comes first
    middle.register_hook(lambda gradient: gradient * math.nan)
    (finite + middle.sum()).backward()
    assert not steps.end_step().isfinite()
    assert torch.equal(last, torch.ones(3)) and (first < 1).all() and first.isfinite().all()
    (first.sum() + last.sum()).backward()
    assert steps.end_step().isfinite() and (last < 1).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"optimizer_in_backward": True, "gradient_accumulation_steps": 2},
            "accumulation_steps to 1",
        ),
        ({"weights_dtype": "bf16", "mixed_precision": "bf16"}, "optimizer_in_backward to True"),
        (BF16 | {"method": "lora"}, "set it to 'float32'"),
        (BF16 | {"mixed_precision": "no"}, "computes in no"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_by_name(given, words):
    config = configure(TrainConfig, {"gradient_accumulation_steps": 1} | given)
    device = pick_device(config.mixed_precision, config.attention, config.capture)
    with pytest.raises(RunError, match=words):
        check_settings(config, device, 1)
    with pytest.raises(RunError, match="trains in one process"):
        check_settings(configure(TrainConfig, IN_BACKWARD), device, 2)


def test_the_plan_counts_no_gradients():
    given = {"preset": "demo", "resolution_px": 32, "train_batch_size": 1, **IN_BACKWARD}
    inside = configure(TrainConfig, given)
    device = pick_device("no", "auto", "auto")
    plain = activation_memory(replace(inside, optimizer_in_backward=False), device)
    assert activation_memory(inside, device) < plain / 3


COUNT = """
from dataclasses import replace
from helpers.config import TrainConfig, configure
from helpers.host.device import pick_device
from helpers.train.resources import activation_memory
config = configure(TrainConfig, {"preset": "demo", "resolution_px": 32, "train_batch_size": 1}, \
    optimizer_in_backward=True, weights_dtype="bf16", mixed_precision="bf16")
print(activation_memory(config, replace(pick_device(), precision="bf16")))
"""


def test_counting_bf16_weights_puts_no_librarys_warning_on_the_screen():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert int(done.stdout) and "float32" not in done.stderr
