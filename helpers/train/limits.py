"""Turn limits of the machine into errors that name a setting: out of memory (OOM), or too slow without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.exc import TorchDynamoException
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from helpers.config import TrainConfig
from helpers.core.errors import OutOfMemoryError, RunError
from helpers.host.device import Device
from helpers.models.untrusted import open_model
from helpers.train.check_base import check_part_settings
from helpers.train.model import ADVICE

MAX_CPU_PARAMETERS = 100e6  # of a UNet that is trained without a GPU
OOM_MESSAGES = ("out of memory", "can't allocate", "not enough memory", "alloc_failed")
NEW_RUN = ", which changes what is learned: if there are checkpoints, use another run name"


def memory_advice(config: TrainConfig) -> str:
    """Return advice on which setting to change next to save memory, the least costly first."""
    size = config.train_batch_size
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing to True"
    if size > 1:
        parts = next(n for n in range(2, size + 1) if size % n == 0)
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
    """Turn an out-of-memory (OOM) or torch.compile failure into an error of one line that names a setting to change.

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
    """Raise RunError with the hours needed if a full-size model would train without a GPU, unless `allow_slow`."""
    if device.device.type != "cpu" or config.allow_slow:
        return
    with open_model("base_model", config.base_model, ADVICE, weights=False) as folder:
        check_part_settings(folder / "unet", "UNet2DConditionModel")
        unet_config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
    parameters = sum(p.numel() for p in unet.parameters())
    if parameters < MAX_CPU_PARAMETERS:
        return
    images = config.effective_batch_size
    seconds = 3 * images * forward_flops(unet, config.resolution_px // 8) / _flops_per_s()
    raise RunError(
        f"{config.base_model} has {parameters / 1e6:.0f} M parameters and there is no GPU here: "
        f"{config.max_steps} steps of about {seconds:.0f} s would take {config.max_steps * seconds / 3600:.0f} hours "
        f"and {parameters * 16 / 1e9:.0f} GB of memory; choose a GPU runtime, or set more={{'allow_slow': True}}"
    )


def forward_flops(unet: UNet2DConditionModel, latent_side: int) -> float:
    """Count the floating-point operations of a UNet's forward pass for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents = torch.empty(1, unet.config.in_channels, latent_side, latent_side)
        unet(latents, torch.zeros(1), torch.empty(1, 77, unet.config.cross_attention_dim))
    return counter.get_total_flops()


def _flops_per_s(side: int = 1024) -> float:
    """Estimate the FLOP/s that a UNet reaches on this CPU: half of a timed matrix product's."""
    matrix = {"a": torch.randn(side, side)}
    timer = Timer("a @ a", globals=matrix, num_threads=torch.get_num_threads())
    return 0.5 * 2 * side**3 / timer.timeit(3).mean
