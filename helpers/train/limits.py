"""What is too much for a machine, told before it starts or when it happens, with the setting to change."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.exc import TorchDynamoException
from torch.utils.flop_counter import FlopCounterMode

from helpers.config import TrainConfig
from helpers.core.errors import OutOfMemoryError, RunError
from helpers.host.device import Device
from helpers.models.untrusted import open_model
from helpers.train.check_base import check_part_settings
from helpers.train.model import ADVICE

LARGE = 100e6  # parameters; a UNet beyond this wants a GPU
MEMORY_WORDS = ("out of memory", "can't allocate", "not enough memory", "alloc_failed")
ANEW = ", which changes what is learnt: where there are checkpoints, under another run name"


def what_to_change(config: TrainConfig) -> str:
    """The setting that saves most memory at the least cost, of those not yet used."""
    size = config.train_batch_size
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing to True"
    if size > 1:
        parts = next(n for n in range(2, size + 1) if size % n == 0)
        more = config.gradient_accumulation_steps * parts
        advice = (
            f"set train_batch_size to {size // parts} and gradient_accumulation_steps to {more}"
        )
        return advice + (ANEW if config.aspect_ratio_buckets else "")
    if config.use_ema and not config.offload_ema:
        return "set offload_ema to True"
    if config.method == "full" and config.optimizer == "adamw":
        return f"set optimizer to 'adamw8bit'{ANEW}"
    if config.method == "full":
        return f"set method to 'lora'{ANEW}"
    return f"lower resolution_px, which is {config.resolution_px}, or choose a larger GPU{ANEW}"


@contextmanager
def machine_errors(config: TrainConfig) -> Iterator[None]:
    """Name the setting to change where memory is short (OutOfMemoryError) or nothing compiles (RunError)."""
    again = "run 04_train again and it goes on from the last checkpoint if there is one"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error).strip()
        is_told = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if is_told or any(w in words.lower() for w in MEMORY_WORDS):
            what = words.split("\n")[0][:120] or type(error).__name__
            advice = f"{what_to_change(config)}; {again}"
            raise OutOfMemoryError(f"out of memory ({what}): {advice}") from error
        if isinstance(error, TorchDynamoException):
            what = " ".join(words.split())[:120]
            advice = f"set torch_compile to False; {again}"
            raise RunError(f"the model did not compile ({what}): {advice}") from error
        raise


def refuse_slow(config: TrainConfig, device: Device) -> None:
    """Stop before a full-size model is trained without a GPU, saying what it would cost.

    Counts the floating-point operations of a step on a UNet without memory, and times this machine.
    Raises RunError unless config.allow_slow.
    """
    if device.device.type != "cpu" or config.allow_slow:
        return
    with open_model("base_model", config.base_model, ADVICE, weights=False) as folder:
        check_part_settings(folder / "unet", "UNet2DConditionModel")
        unet_config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
    parameters = sum(p.numel() for p in unet.parameters())
    if parameters < LARGE:
        return
    images = config.effective_batch_size
    seconds = 3 * images * forward_flops(unet, config.resolution_px // 8) / _flops_per_s()
    raise RunError(
        f"{config.base_model} has {parameters / 1e6:.0f} M parameters and there is no GPU here: "
        f"{config.max_steps} steps of about {seconds:.0f} s would take {config.max_steps * seconds / 3600:.0f} hours "
        f"and {parameters * 16 / 1e9:.0f} GB of memory; choose a GPU runtime, or set more={{'allow_slow': True}}"
    )


def forward_flops(unet: UNet2DConditionModel, latent_side: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents = torch.empty(1, unet.config.in_channels, latent_side, latent_side)
        unet(latents, torch.zeros(1), torch.empty(1, 77, unet.config.cross_attention_dim))
    return counter.get_total_flops()


def _flops_per_s(side: int = 1024) -> float:
    """What a matrix product reaches on this CPU; a UNet comes to about half of it."""
    a = torch.randn(side, side)
    a @ a
    began = time.perf_counter()
    for _ in range(3):
        a @ a
    return 0.5 * 3 * 2 * side**3 / (time.perf_counter() - began)
