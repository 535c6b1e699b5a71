"""The settings and the command by which several GPUs train together on the batches of one."""

import os
from dataclasses import fields, replace

import torch

from helpers.config import TrainConfig
from helpers.host.here import HOST

# accelerate warns of each that is not given; port 0 is any free one
LAUNCH = "accelerate launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"


def count_gpus() -> int:
    """Return the number of GPUs that 04 trains on: all of a rented machine, else 1, and 1 in a launched process.

    Several processes capture no CUDA graphs. A person's own GPUs may be so fast that one of them does more with.
    """
    is_one_of_many = "WORLD_SIZE" in os.environ
    return max(torch.cuda.device_count(), 1) if HOST.is_rented and not is_one_of_many else 1


def share(config: TrainConfig, processes: int) -> TrainConfig | None:
    """Return the settings of each of several processes that together take the steps of one; None if they cannot.

    With aspect-ratio buckets a micro-batch keeps its images, so it is divided; else the passes of a step are, which
    keeps each GPU as busy as before.
    """
    batch, passes = config.train_batch_size, config.gradient_accumulation_steps
    if processes > 1 and config.optimizer_in_backward:
        return None
    if passes % processes == 0 and not config.aspect_ratio_buckets:
        return replace(config, gradient_accumulation_steps=passes // processes)
    if batch % processes == 0:
        return replace(config, train_batch_size=batch // processes)
    return None


def whole(shared: TrainConfig, processes: int) -> TrainConfig:
    """Return settings whose step in one process has the images that it has in several with these settings each."""
    if shared.aspect_ratio_buckets:
        return replace(shared, train_batch_size=shared.train_batch_size * processes)
    passes = shared.gradient_accumulation_steps * processes
    return replace(shared, gradient_accumulation_steps=passes)


def launch_command(shared: TrainConfig, processes: int) -> list[str]:
    """Return the command that trains with these settings of each process, as words of a shell's line."""
    preset, words = shared.defaults(), [*LAUNCH.split(), "--num_processes", str(processes)]
    words += ["-m", "helpers.train", shared.run, "--json", "--preset", shared.preset]
    for field in fields(shared):
        value = getattr(shared, field.name)
        if field.name not in ("run", "preset") and value != preset[field.name]:
            words += ["-p", field.name, str(value)]
    return words
