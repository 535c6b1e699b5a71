"""Two processes on two CPU workers in place of two GPUs: the batches, the losses and the command are the same."""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.config import TrainConfig, configure, read_settings
from helpers.core.errors import RunError, Stopped
from helpers.host.device import pick_device
from helpers.train import launch, trainer
from helpers.train.checkpoint import latest_step
from helpers.train.data import BatchOrder
from helpers.train.gpus import launch_command, share, whole
from helpers.train.prepare import training_signature
from helpers.train.resources import estimate_resources
from tests.conftest import SMALL_TRAINING, lines, make_dataset


def settings(base, **more):
    given = {"base_model": str(base), "run": "pictures", "gradient_accumulation_steps": 2}
    return configure(TrainConfig, SMALL_TRAINING | given | more)


@pytest.mark.soak
def test_two_watched_processes_are_stopped_and_the_printed_command_goes_on_as_one_would(
    dataset, tiny_base, pictures, capsys, monkeypatch
):
    rarely = {"validate_every_steps": 1000, "preview_every_steps": 1000, "prior_share": 0.0}
    alone = settings(tiny_base, max_steps=60, save_every_steps=50, **rarely)
    list(trainer.train(alone, dataset))
    twin, config = make_dataset("twin", pictures), replace(alone, run="twin")
    steps = launch.train(config, twin, processes=2)
    assert [next(steps).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Stopped, match=r"stopped after step \d+ of 60, which is kept"):
        os.kill(os.getpid(), signal.SIGINT)  # the stop button
        list(steps)
    step = latest_step(twin)
    seen = [2]
    while seen[-1] <= step:
        seen.append(next(iter(steps)).step)
    assert seen in (list(range(2, step + 2)), [*range(2, step), step + 1])  # the last may go untold
    assert read_settings(TrainConfig, twin.read_config("train")) == config  # not a share
    steps.close()
    assert 2 <= step < latest_step(twin) and not twin.verdict.exists()
    printed, _ = [line for line in capsys.readouterr().out.splitlines() if "accelerate" in line]
    count, command = printed.split(": ")
    assert count == "2 processes" and "-p train_batch_size 2 " in command  # once, not twice
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trained_with = twin.read_verdict()["trained_with"]["settings"]
    assert read_settings(TrainConfig, trained_with) == config  # which the card tells
    for one, two in zip(lines(dataset.train_log), lines(twin.train_log), strict=True):
        assert one["step"] == two["step"] and abs(one.get("loss", 0) - two.get("loss", 0)) < 1e-3
    assert list(launch.train(config, twin, processes=2)) == []
    assert list(trainer.train(config, twin)) == []  # one process knows that it has ended, too
    with pytest.raises(RunError, match="^runs/twin/.* .learning_rate was 0.001, not 0.5."):
        list(launch.train(replace(config, learning_rate=0.5), twin, processes=2))


@pytest.mark.parametrize(
    ("given", "each"),
    [
        ({"train_batch_size": 2, "gradient_accumulation_steps": 2}, (2, 1)),
        ({"train_batch_size": 8, "gradient_accumulation_steps": 1}, (4, 1)),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 2, "aspect_ratio_buckets": True}, (2, 2)),
        ({"train_batch_size": 1, "gradient_accumulation_steps": 1}, None),
        ({"train_batch_size": 1, "gradient_accumulation_steps": 2, "aspect_ratio_buckets": True}, None),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 1, "optimizer_in_backward": True}, None),
    ],
)  # fmt: skip
def test_a_step_of_two_processes_has_the_images_of_one(given, each):
    config = configure(TrainConfig, given)
    shared = share(config, 2)
    assert share(config, 1) == config
    assert (shared and (shared.train_batch_size, shared.gradient_accumulation_steps)) == each
    if shared:
        assert shared.effective_batch_size * 2 == config.effective_batch_size
        together = training_signature(whole(shared, 2), 1)
        assert together == training_signature(shared, 2) == training_signature(config, 1)
        buckets = [range(7), range(7, 20)] if config.aspect_ratio_buckets else [range(20)]
        assert images(shared, 2, buckets) == images(config, 1, buckets)


def images(config, processes, buckets):
    """The images of the first steps, all processes together."""
    order = BatchOrder(buckets, config.train_batch_size * processes, config.seed)
    passes = config.gradient_accumulation_steps
    return [
        [image for i in range(passes) for image in order.batch(step * passes + i)]
        for step in range(9)
    ]


def test_the_command_has_every_setting_that_is_not_the_presets():
    given = {"run": "a", "preset": "t4", "prompts": ("a cat, 'red'", "b"), "rank": 7, "random_flip": True}  # fmt: skip
    config = configure(TrainConfig, given)
    words = launch_command(config, 2)
    assert words[:3] == ["accelerate", "launch", "--multi_gpu"] and "SD15" not in words
    from helpers.config import from_text

    at = words.index("--preset")
    typed = dict(zip(words[at + 3 :: 3], words[at + 4 :: 3], strict=True))
    typed = {name: from_text(TrainConfig, name, value) for name, value in typed.items()}
    assert typed.keys() == {"prompts", "rank", "random_flip"}
    assert configure(TrainConfig, typed, run="a", preset=words[at + 1]) == config


def test_the_plan_counts_a_share_on_each_gpu(dataset, tiny_base, monkeypatch):
    monkeypatch.setattr("helpers.train.resources.count_gpus", lambda: 2)
    plan = estimate_resources(settings(tiny_base), dataset, pick_device())
    assert "GPUs        2 share each step" in str(plan)
    plan = estimate_resources(
        settings(tiny_base, train_batch_size=1, gradient_accumulation_steps=1),
        dataset,
        pick_device(),
    )
    assert "GPUs" not in str(plan)
