"""The captured step: recorded kernels give the eager step's bits, and what cannot be recorded trains all the same.

No GPU is needed: kernels are recorded by make_fx, which as a CUDA graph does holds the operations that a function
launched, on the tensors that it launched them on, and raises where Python reads a tensor's value.
"""

import logging
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from helpers.config import TrainConfig, configure
from helpers.core.records import read_log
from helpers.models.capture import Captured, CapturedForward
from helpers.train.trainer import train
from tests.conftest import SMALL_TRAINING, lines, train_until


class TracedKernels:
    """Records operations on real tensors; to record runs them, so what they wrote is taken back."""

    recorded = steps = 0  # all functions, and those of them that train

    def warm_up(self, function, inputs):
        return function(**inputs)

    def record(self, function, inputs):
        type(self).recorded += 1
        written = self.buffers(function)
        type(self).steps += bool(written)
        before = [tensor.clone() for tensor in written]
        named = partial(_with_names, function, tuple(inputs))
        traced = make_fx(named, tracing_mode="real")(*inputs.values())
        for tensor, was in zip(written, before, strict=True):
            tensor.copy_(was)
        return lambda: torch.no_grad()(traced)(*inputs.values())

    def buffers(self, function):
        model = getattr(function, "args", [None])[0]
        return [p.grad for p in model.parameters() if p.grad is not None] if model else []


def _with_names(function, names, *tensors):
    """make_fx traces functions of positions alone."""
    return function(**dict(zip(names, tensors, strict=True)))


class Refusing(TracedKernels):
    def record(self, function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


@pytest.fixture
def captures(monkeypatch):
    """Have a machine without a GPU capture, by kernels traced in place of graphs."""

    def with_recorder(kind):
        kind.recorded = kind.steps = 0
        monkeypatch.setattr("helpers.models.capture._shared_graphs", kind)
        monkeypatch.setattr(
            "helpers.host.device._capture", lambda device, wanted: (wanted == "auto", "")
        )
        return kind

    return with_recorder


def settings(base, **given):
    given = {"run": "pictures", "base_model": str(base), **SMALL_TRAINING, **given}
    return configure(TrainConfig, given)


def rows(run):
    return [
        {k: v for k, v in row.items() if k != "images_per_s"} for row in read_log(run.train_log)
    ]


@pytest.mark.parametrize(
    "given, shapes",
    [
        ({"gradient_checkpointing": True, "use_ema": True}, 1),
        ({"method": "lora", "rank": 4, "train_text_encoder": True}, 1),
        (
            {"aspect_ratio_buckets": True, "train_batch_size": 1, "snr_gamma": 5.0}
            | {"gradient_accumulation_steps": 2, "max_grad_norm": 0.01},
            3,  # pictures of two shapes, and the base's own samples
        ),
    ],
    ids=["full", "LoRA and text encoder", "buckets and accumulation"],
)
def test_a_captured_training_has_the_same_losses_to_the_bit(
    dataset, tiny_base, captures, given, shapes, tmp_path
):
    given = given | {"max_steps": 5}
    list(train(settings(tiny_base, capture="off", **given), dataset))
    eager = rows(dataset)
    for name in ("checkpoints", "model"):
        (dataset.folder / name).rename(tmp_path / name)
    dataset.verdict.unlink()

    kernels = captures(TracedKernels)
    list(train(settings(tiny_base, **given), dataset))
    assert kernels.steps == shapes
    assert rows(dataset) == eager
    assert len({row["loss"] for row in eager[1:]}) == 5


def test_a_captured_training_goes_on_from_an_eager_one(dataset, tiny_base, captures, tmp_path):
    given = {"max_steps": 6}
    list(train(settings(tiny_base, capture="off", **given), dataset))
    undisturbed = rows(dataset)
    for name in ("checkpoints", "model"):
        (dataset.folder / name).rename(tmp_path / name)
    dataset.verdict.unlink()

    train_until(settings(tiny_base, capture="off", **given), dataset, 2)
    kernels = captures(TracedKernels)
    list(train(settings(tiny_base, **given), dataset))
    assert kernels.steps == 1
    assert rows(dataset) == undisturbed


def test_where_kernels_refuse_it_trains_as_before_and_says_why(
    dataset, tiny_base, captures, caplog
):
    captures(Refusing)
    with caplog.at_level(logging.WARNING):
        list(train(settings(tiny_base), dataset))
    assert len(lines(dataset.train_log)) == 5
    said = [r.getMessage() for r in caplog.records if "the training step" in r.getMessage()]
    assert said == [
        "the training step is not captured (operation not permitted when stream is capturing): "
        "it continues, more slowly"
    ]


def test_a_function_that_reads_a_value_is_not_recorded(caplog):
    captured = Captured(lambda x: x * 2 if x.sum() > 0 else x, "this", TracedKernels())
    for _ in range(3):
        assert captured(x=torch.ones(2)).tolist() == [2, 2]
    assert captured.failed and "this is not captured" in caplog.text


def test_each_shape_is_recorded_once_and_results_are_tensors_of_their_own():
    seen = []

    def double(x):
        seen.append(tuple(x.shape))
        return x * 2

    captured = Captured(double, "this", TracedKernels())
    results = [captured(x=torch.full((n,), float(i))) for i in range(4) for n in (1, 3)]
    assert [r.tolist() for r in results] == [[2.0 * i] * n for i in range(4) for n in (1, 3)]
    assert seen == [(1,), (3,), (1,), (3,)]  # once as it is, once to record


def test_a_pipeline_draws_the_same_with_its_forward_captured(tiny_base):
    from helpers.models.pipeline import load_pipeline, sample_fast

    pipeline = sample_fast(load_pipeline(str(tiny_base), torch.float32))
    given = {"num_inference_steps": 4, "height": 32, "width": 32, "output_type": "np"}

    def draw():
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **given).images

    eager = draw()
    captured = CapturedForward(pipeline.unet, TracedKernels())
    with captured.installed():
        assert (draw() == eager).all()
        pipeline.unet.conv_in.weight.data.mul_(2)  # in place, as checkpoints are shown
        changed = draw()
    assert "forward" not in vars(pipeline.unet)
    assert (draw() == changed).all() and (changed != eager).any()


def test_weights_that_have_moved_are_recorded_anew(tiny_base):
    from helpers.models.pipeline import load_pipeline, sample_fast

    pipeline = sample_fast(load_pipeline(str(tiny_base), torch.float32))
    TracedKernels.recorded = 0
    captured = CapturedForward(pipeline.unet, TracedKernels())
    given = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}

    def draw():
        return pipeline("a cat", generator=torch.Generator().manual_seed(0), **given).images

    for _ in range(2):
        with captured.installed():
            draw()
    assert TracedKernels.recorded == 1
    pipeline.unet.conv_in.weight.data = pipeline.unet.conv_in.weight.data * 2
    with captured.installed():
        drawn = draw()
    assert TracedKernels.recorded == 2
    assert (drawn == draw()).all()
