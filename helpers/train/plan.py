"""Before training starts: what it will take of memory, disk and hours."""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import folder_bytes
from helpers.core.run import Run
from helpers.host.colab import SESSION_HOURS, on_colab
from helpers.host.device import GB, Device
from helpers.mirror.sync import remote_room_bytes
from helpers.models.capture import Captured
from helpers.models.untrusted import open_model
from helpers.train.check_base import check_part_settings
from helpers.train.footprint import pass_bytes, random_inputs
from helpers.train.limits import machine_errors, refuse_slow, what_to_change
from helpers.train.model import ADVICE, make_trainable
from helpers.train.optim import make_optimizer

CONTEXT_GB = 0.6  # of CUDA itself
SMALLEST = 100_000_000  # parameters of a model that one would train for its pictures
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
    model_gb: float = 0.0  # of the UNet and the text encoder in model/
    measured_gb: float | None = None  # of GPU memory
    steps_per_s: float | None = None
    step_hours: float | None = None
    hours: float | None = None  # with what is measured and drawn between the steps

    @property
    def _toy(self) -> str:
        is_toy = self.parameters < SMALLEST
        return ": a toy; for pictures of your own set preset to 't4' or another" if is_toy else ""

    def __str__(self) -> str:
        took = "" if self.measured_gb is None else f", {self.measured_gb:.1f} GB measured"
        lines = [
            f"trained     {self.trained / 1e6:.1f} M of {self.parameters / 1e6:.1f} M parameters{self._toy}",
            f"memory      {self.memory_gb:.1f} GB counted{took}, of {self.room_gb:.0f} GB",
            f"checkpoints {self.checkpoints} x {size(self.checkpoint_gb)}, of {size(self.free_gb)} free",
        ]
        if self.hours is not None:
            lines.append(
                f"time        about {_spell(self.hours)}: {_spell(self.step_hours)} of steps at "
                f"{self.steps_per_s:.2f} a second, the rest for what is measured and drawn"
            )
            if on_colab() and self.hours > SESSION_HOURS:
                lines.append(
                    f"            a free Colab session lasts {SESSION_HOURS} hours at most: run this notebook "
                    "again on the next machine, and with Drive mounted it goes on"
                )
        return "\n".join(lines)


def _spell(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} min"


def plan(config: TrainConfig, run: Run, device: Device) -> Plan:
    """Count what a training takes, and time ten steps (three on a CPU) on random weights of the same shapes.

    Raises RunError, naming the setting to change, if it will not fit or would take days without a GPU, and where the
    dataset is missing.
    """
    run.require(run.split_metadata("train"), "dataset")
    refuse_slow(config, device)
    counted = refuse_too_large(config, run, device)
    with machine_errors(config):
        _peak_gb(device)
        step_s, forward_s, peak_gb = _rehearse(config, device, 10 if _is_gpu(device) else 3)
        if _is_gpu(device):  # what it took is the training's now
            torch.cuda.empty_cache()
    step_hours = config.max_steps * step_s / 3600
    hours = step_hours + _forwards_beside(config, run) * forward_s / 3600
    timed = {"steps_per_s": 1 / step_s, "step_hours": step_hours, "hours": hours}
    return replace(counted, measured_gb=peak_gb, **timed)


def _forwards_beside(config: TrainConfig, run: Run) -> int:
    """The UNet's forward passes that no step has, each of one image: prior samples, measurements, previews."""
    images, suffix = len(run.split_images("train")), run.read_config("dataset")["suffix"]
    picture = config.num_inference_steps * (2 if config.guidance_scale > 1 else 1)
    prior = round(config.prior_share * images) if suffix else 0
    previews = config.max_steps // config.preview_every_steps + 2
    measures = config.max_steps // config.validate_every_steps + 2
    pairs = config.validation_pairs + config.validation_pairs // 2
    drawn = prior + previews * (len(config.prompts) or 4)
    return drawn * picture + measures * pairs + 4 * images


def refuse_too_large(config: TrainConfig, run: Run, device: Device) -> Plan:
    """The plan without its times. Raises RunError, naming the setting to change, if it will not fit."""
    counted = _count(config, run, device)
    if counted.memory_gb > counted.room_gb:
        raise RunError(
            f"this training needs about {counted.memory_gb:.1f} GB of memory and there are "
            f"{counted.room_gb:.1f} GB: {what_to_change(config)}"
        )
    if counted.checkpoints * counted.checkpoint_gb + counted.model_gb > counted.free_gb:
        raise RunError(
            f"{counted.checkpoints} checkpoints of {size(counted.checkpoint_gb)} and a model of "
            f"{size(counted.model_gb)} do not fit into the {size(counted.free_gb)} free at {run.folder}: "
            "lower keep_checkpoints, set method to 'lora', or free some space"
        )
    return counted


def size(gb: float) -> str:
    """A size in the unit in which it has a digit before the point."""
    for unit, gb_each in (("GB", 1.0), ("MB", 1e-3)):
        if gb >= gb_each:
            return f"{gb / gb_each:.1f} {unit}"
    return f"{gb * 1e6:.0f} kB"


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
        model_gb=sum(p.numel() for p in weights) * device.dtype.itemsize / GB,
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
    with open_model("base_model", config.base_model, ADVICE, weights=False) as folder:
        check_part_settings(folder / "unet", "UNet2DConditionModel")
        check_part_settings(folder / "text_encoder", "CLIPTextModel")
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(folder, subfolder="unet")
        )
        text = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
    return unet, make_trainable(unet, CLIPTextModel(text), config, device.dtype)


def latent_side(config: TrainConfig) -> int:
    """The side of the latents of a square image."""
    with open_model("base_model", config.base_model, ADVICE, weights=False) as folder:
        check_part_settings(folder / "vae", "AutoencoderKL")
        vae = AutoencoderKL.load_config(folder, subfolder="vae")
    return config.resolution_px // 2 ** (len(vae["block_out_channels"]) - 1)


def _is_gpu(device: Device) -> bool:
    return device.device.type == "cuda"


def _room_bytes(device: Device) -> float:
    if _is_gpu(device):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_bytes(run: Run, checkpoint: float) -> float:
    """Free where checkpoints go: the run's disk, or Google Drive where mounted, which needs room for one fewer.

    What checkpoints of this run take already is theirs.
    """
    disk = next(p for p in (run.folder, *run.folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(disk).free + folder_bytes(run.checkpoints)
    return min(free, remote_room_bytes(run) + checkpoint)


def _rehearse(config: TrainConfig, device: Device, steps: int) -> tuple[float, float, float | None]:
    """Seconds of a step and of an image's forward pass, and the peak of GPU memory in GB, on random weights."""
    with torch.random.fork_rng(), torch.device(device.device):
        module = _build(config, device)[1]
        weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(weights, config)
        inputs = random_inputs(module, config.train_batch_size, latent_side(config))

        def forward(*inputs: torch.Tensor) -> torch.Tensor:
            with device.autocast():
                return module(*inputs).sample.float().square().mean()

        def forward_backward(*inputs: torch.Tensor) -> torch.Tensor:
            loss = forward(*inputs)
            loss.backward()
            return loss.detach()

        if device.captures:
            for weight in weights.values():
                weight.grad = torch.zeros_like(weight)
            forward_backward = Captured(forward_backward, "the training step")

        def step() -> None:
            for _ in range(config.gradient_accumulation_steps):
                forward_backward(*inputs)
            optimizer.step()
            optimizer.zero_grad(set_to_none=not device.captures)

        step_s, peak_gb = _median_s(step, 2 + steps), _peak_gb(device)
        with torch.no_grad():
            forward_s = _median_s(lambda: forward(*inputs), 4) / config.train_batch_size
    return step_s, forward_s, peak_gb


def _peak_gb(device: Device) -> float | None:
    """The peak of GPU memory since it was asked last."""
    if not _is_gpu(device):
        return None
    peak = torch.cuda.max_memory_reserved() / GB + CONTEXT_GB
    torch.cuda.reset_peak_memory_stats()
    return peak


def _median_s(act: Callable[[], object], times: int) -> float:
    """The median of the seconds that `act` takes, the first two times left out."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[2:])
