"""Before training starts: what it will take of memory, disk and hours, and what to change where that is too much."""

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.colab import SESSION_HOURS, drive_free_bytes, on_colab
from helpers.config import TrainConfig
from helpers.device import GB, Device
from helpers.errors import OutOfMemoryError, RunError
from helpers.run import Run
from helpers.train.footprint import pass_bytes, random_inputs
from helpers.train.model import make_trainable, no_such_base
from helpers.train.optimizer import make_optimizer

LARGE = 100e6  # parameters; a UNet beyond this wants a GPU
CONTEXT_GB = 0.6  # of CUDA itself
SPARE = 1.1  # what the allocator takes for its blocks


@dataclass(frozen=True)
class Plan:
    """What a training will take, and what there is."""

    parameters: int
    trained: int
    memory_gb: float  # at its peak, counted
    room_gb: float
    checkpoint_gb: float
    checkpoints: int  # on the disk at once: those kept, the best, and the one being written
    free_gb: float
    measured_gb: float | None = None  # of GPU memory
    steps_per_s: float | None = None
    hours: float | None = None

    def __str__(self) -> str:
        took = "" if self.measured_gb is None else f", {self.measured_gb:.1f} GB measured"
        lines = [
            f"trained     {self.trained / 1e6:.1f} M of {self.parameters / 1e6:.1f} M parameters",
            f"memory      {self.memory_gb:.1f} GB counted{took}, of {self.room_gb:.0f} GB",
            f"checkpoints {self.checkpoints} x {self.checkpoint_gb:.2f} GB, of {self.free_gb:.0f} GB free",
        ]
        if self.hours is not None:
            spent = (
                f"{self.hours:.1f} hours" if self.hours >= 1 else f"{60 * self.hours:.0f} minutes"
            )
            lines.append(f"time        {spent} at {self.steps_per_s:.2f} steps/s")
            if on_colab() and self.hours > SESSION_HOURS:
                lines.append(
                    f"            a free Colab session lasts {SESSION_HOURS} hours at most: run this notebook "
                    "again on the next machine, and with Drive mounted it goes on"
                )
        return "\n".join(lines)


def plan(config: TrainConfig, run: Run, device: Device) -> Plan:
    """Count what a training takes, and time ten steps (three on a CPU) on random weights of the same shapes.

    Raises RunError, naming the setting to change, if it will not fit or would take days without a GPU, and where the
    dataset is missing.
    """
    run.require(run.split_metadata("train"), "dataset")
    refuse_slow(config, device)
    counted = refuse_too_large(config, run, device)
    with memory_errors(config):
        steps_per_s, peak_gb = _rehearse(config, device, 10 if _is_gpu(device) else 3)
    hours = config.max_steps / steps_per_s / 3600
    return replace(counted, measured_gb=peak_gb, steps_per_s=steps_per_s, hours=hours)


def refuse_too_large(config: TrainConfig, run: Run, device: Device) -> Plan:
    """The plan without its times. Raises RunError, naming the setting to change, if it will not fit."""
    counted = _count(config, run, device)
    if counted.memory_gb > counted.room_gb:
        raise RunError(
            f"this training needs about {counted.memory_gb:.1f} GB of memory and there are "
            f"{counted.room_gb:.1f} GB: {what_to_change(config)}"
        )
    if counted.checkpoints * counted.checkpoint_gb > counted.free_gb:
        raise RunError(
            f"{counted.checkpoints} checkpoints of {counted.checkpoint_gb:.1f} GB do not fit into the "
            f"{counted.free_gb:.1f} GB free at {run.folder}: lower keep_checkpoints, set method to 'lora', "
            "or free some space"
        )
    return counted


def _count(config: TrainConfig, run: Run, device: Device) -> Plan:
    module, passing = _module(config, device), _passing(config, device)
    weights = list(module.parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in weights if not p.requires_grad)
    moments = trained * (2 if config.optimizer == "adamw8bit" else 8)
    average = trained * 4 if config.use_ema else 0
    kept = trained * 4 + moments + average
    held = trained * 4 + frozen + moments + (0 if config.offload_ema else average)
    return Plan(
        parameters=sum(p.numel() for p in weights),
        trained=trained,
        memory_gb=(held + passing) * SPARE / GB + (CONTEXT_GB if _is_gpu(device) else 0.0),
        room_gb=_room_bytes(device) / GB,
        checkpoint_gb=kept / GB,
        checkpoints=config.keep_checkpoints + 2,
        free_gb=_free_bytes(run, kept) / GB,
    )


def _module(config: TrainConfig, device: Device) -> torch.nn.Module:
    with torch.device("meta"):
        return _build(config, device)[1]


@lru_cache(maxsize=8)  # the notebook counts, and the training does again
def _passing(config: TrainConfig, device: Device) -> int:
    """What a step's passes hold at their peak, gradients included, in bytes."""
    size, passes = config.train_batch_size, config.gradient_accumulation_steps
    return pass_bytes(_module(config, device), size, latent_side(config), device, passes)


def _build(config: TrainConfig, device: Device) -> tuple[UNet2DConditionModel, torch.nn.Module]:
    """A UNet of the base's shapes and random weights, and the module that would be trained."""
    try:
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(config.base_model, subfolder="unet")
        )
        text = CLIPTextConfig.from_pretrained(config.base_model, subfolder="text_encoder")
    except (OSError, ValueError) as error:
        raise no_such_base(config.base_model, error) from error
    return unet, make_trainable(unet, CLIPTextModel(text), config, device.dtype)


def latent_side(config: TrainConfig) -> int:
    """The side of the latents of a square image."""
    vae = AutoencoderKL.load_config(config.base_model, subfolder="vae")
    return config.resolution_px // 2 ** (len(vae["block_out_channels"]) - 1)


def _is_gpu(device: Device) -> bool:
    return device.device.type == "cuda"


def _room_bytes(device: Device) -> float:
    if _is_gpu(device):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_bytes(run: Run, checkpoint: float) -> float:
    """Free where checkpoints go: the run's disk, or Google Drive where mounted, which needs room for one fewer."""
    disk = next(p for p in (run.folder, *run.folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(disk).free
    return min(free, drive_free_bytes() + checkpoint)


def _rehearse(config: TrainConfig, device: Device, steps: int) -> tuple[float, float | None]:
    """Optimizer steps per second, and the peak of GPU memory in GB, on random weights and latents."""
    with torch.random.fork_rng(), torch.device(device.device):
        module = _build(config, device)[1]
        weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(weights, config)
        if _is_gpu(device):
            torch.cuda.reset_peak_memory_stats()
        inputs = random_inputs(module, config.train_batch_size, latent_side(config))
        times: list[float] = []
        for _ in range(2 + steps):
            began = time.perf_counter()
            for _ in range(config.gradient_accumulation_steps):
                with device.autocast():
                    loss = module(*inputs).sample.float().square().mean()
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.detach().item()  # waits for the device
            times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_reserved() / GB + CONTEXT_GB if _is_gpu(device) else None
    return 1 / statistics.median(times[2:]), peak


def what_to_change(config: TrainConfig) -> str:
    """The setting that saves most memory at the least cost, of those not yet used."""
    if not config.gradient_checkpointing:
        return "set gradient_checkpointing to True"
    if config.train_batch_size > 1:
        smaller, more = config.train_batch_size // 2, config.gradient_accumulation_steps * 2
        return f"set train_batch_size to {smaller} and gradient_accumulation_steps to {more}"
    if config.use_ema and not config.offload_ema:
        return "set offload_ema to True"
    if config.method == "full" and config.optimizer == "adamw":
        return "set optimizer to 'adamw8bit'"
    if config.method == "full":
        return "set method to 'lora'"
    return f"lower resolution_px, which is {config.resolution_px}, or choose a larger GPU"


@contextmanager
def memory_errors(config: TrainConfig) -> Iterator[None]:
    """Turn a device's or the machine's lack of memory into an OutOfMemoryError that names the setting to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        words = str(error).lower()
        if not any(w in words for w in ("out of memory", "can't allocate", "not enough memory")):
            raise
        raise OutOfMemoryError(
            f"out of memory ({str(error).splitlines()[0][:120]}): {what_to_change(config)}; "
            "run 04_train again and it goes on from the last checkpoint if there is one"
        ) from error


def refuse_slow(config: TrainConfig, device: Device) -> None:
    """Stop before a full-size model is trained without a GPU, saying what it would cost.

    Counts the floating-point operations of a step on a UNet without memory, and times this machine.
    Raises RunError unless config.allow_slow.
    """
    if device.device.type != "cpu" or config.allow_slow:
        return
    try:
        unet_config = UNet2DConditionModel.load_config(config.base_model, subfolder="unet")
    except (OSError, ValueError) as error:
        raise no_such_base(config.base_model, error) from error
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
    parameters = sum(p.numel() for p in unet.parameters())
    if parameters < LARGE:
        return
    images = config.train_batch_size * config.gradient_accumulation_steps
    seconds = 3 * images * _forward_flops(unet, config.resolution_px // 8) / _flops_per_s()
    raise RunError(
        f"{config.base_model} has {parameters / 1e6:.0f} M parameters and there is no GPU here: "
        f"{config.max_steps} steps of about {seconds:.0f} s would take {config.max_steps * seconds / 3600:.0f} hours "
        f"and {parameters * 16 / 1e9:.0f} GB of memory; choose a GPU runtime, or set more={{'allow_slow': True}}"
    )


def _forward_flops(unet: UNet2DConditionModel, latent_side: int) -> float:
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
