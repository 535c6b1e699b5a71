"""If memory runs out (OOM) or training on a CPU is too slow, raise an error that names a setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from helpers.config import TrainConfig
from helpers.core.errors import OutOfMemoryError, RunError
from helpers.host.device import Device
from helpers.train.footprint import random_inputs
from helpers.train.model import Denoiser, build_denoiser

MAX_CPU_PARAMETERS = 100e6  # of a UNet that is trained without a GPU
OOM_MESSAGES = ("out of memory", "can't allocate", "not enough memory", "alloc_failed")
NEW_RUN = ", which changes what is learned: if there are checkpoints, use another run name"


def memory_advice(config: TrainConfig) -> str:
    """Return advice to change one setting: the one that saves memory at the least cost."""
    size = config.train_batch_size
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing to True"
    if size > 1:
        parts = next(n for n in range(2, size + 1) if size % n == 0)
        if config.optimizer_in_backward:  # which accumulates nothing
            return f"set train_batch_size to {size // parts}{NEW_RUN}"
        more = config.gradient_accumulation_steps * parts
        new = NEW_RUN if config.aspect_ratio_buckets else ""
        return f"set train_batch_size to {size // parts} and gradient_accumulation_steps to {more}{new}"
    if config.use_ema and not config.offload_ema:
        return "set offload_ema to True"
    if config.method == "full" and config.optimizer == "adamw":
        return f"set optimizer to 'adamw8bit'{NEW_RUN}"
    if config.method == "full":
        return f"set method to 'lora'{NEW_RUN}"
    return f"lower resolution_px, which is {config.resolution_px}, or choose a larger GPU{NEW_RUN}"


@contextmanager
def machine_errors(config: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory (OOM) or torch.compile failure into a one-line error that names a setting to change.

    Raises OutOfMemoryError for memory, of the GPU or of the machine, and RunError for torch.compile.
    """
    again = "run 04_train again, and it resumes from the last checkpoint if there is one"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        message = str(error).strip()
        is_oom = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if is_oom or any(words in message.lower() for words in OOM_MESSAGES):
            what = message.split("\n")[0][:120] or type(error).__name__
            advice = memory_advice(config)
            raise OutOfMemoryError(f"out of memory ({what}): {advice}; {again}") from error
        if isinstance(error, TorchDynamoException):
            what = f"the model did not compile ({' '.join(message.split())[:120]})"
            raise RunError(f"{what}: set torch_compile to False; {again}") from error
        raise


def refuse_slow(config: TrainConfig, device: Device) -> None:
    """Unless `allow_slow`, raise RunError if a full-size model would train on a CPU. The error states the hours."""
    if device.device.type != "cpu" or config.allow_slow:
        return
    with torch.device("meta"):
        denoiser = build_denoiser(replace(config, method="full"), torch.float32)
    parameters = sum(p.numel() for p in denoiser.denoiser.parameters())
    if parameters < MAX_CPU_PARAMETERS:
        return
    images = config.effective_batch_size
    seconds = 3 * images * forward_flops(denoiser, config.resolution_px // 8) / _flops_per_s()
    raise RunError(
        f"{config.base_model} has {parameters / 1e6:.0f} M parameters and there is no GPU here: "
        f"{config.max_steps} steps of about {seconds:.0f} s would take {config.max_steps * seconds / 3600:.0f} hours "
        f"and {parameters * 16 / 1e9:.0f} GB of memory; choose a GPU runtime, or set more={{'allow_slow': True}}"
    )


def forward_flops(denoiser: Denoiser, latent_side: int) -> float:
    """Count the floating-point operations of a denoiser's forward pass for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        denoiser(*random_inputs(denoiser, 1, latent_side))
    return counter.get_total_flops()


def _flops_per_s(side: int = 1024) -> float:
    matrix = {"a": torch.randn(side, side)}
    timer = Timer("a @ a", globals=matrix, num_threads=torch.get_num_threads())
    # a UNet reaches about half the rate of a matrix product
    return 0.5 * 2 * side**3 / timer.timeit(3).mean
