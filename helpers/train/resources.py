"""Estimate the memory, disk and hours of a training before it starts, and refuse one that will not fit."""

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import folder_bytes
from helpers.core.run import Run
from helpers.host.device import GB, Device
from helpers.host.here import HOST
from helpers.mirror.sync import remote_room_bytes
from helpers.models.capture import Captured
from helpers.models.families import Family, Settings
from helpers.models.pipeline import decode_in_tiles
from helpers.train.footprint import peak_activation_bytes, peak_forward_bytes, random_inputs
from helpers.train.gpus import count_gpus, share
from helpers.train.in_backward import StepInBackward, check_settings
from helpers.train.limits import machine_errors, memory_advice, refuse_slow
from helpers.train.model import (
    DRAW_PIXELS,
    Denoiser,
    build_denoiser,
    build_encoders,
    read_base,
)
from helpers.train.optim import make_optimizer
from helpers.train.validation_loss import MAX_LATENT_PIXELS

CUDA_CONTEXT_GB = 0.6
MIN_PARAMETERS = 100_000_000  # of a model that draws real pictures
ALLOCATOR_OVERHEAD = 1.1  # what is reserved per byte of activations
MEMORY_SETTINGS = (  # that activations depend on
    "method rank lora_targets train_text_encoder weights_dtype optimizer_in_backward train_batch_size "
    "gradient_accumulation_steps gradient_checkpointing resolution_px validation_pairs prior_share prompts "
    "guidance_scale"
).split()


@dataclass(frozen=True)
class ResourceEstimate:
    """The memory, disk and hours that a training needs, and the memory and disk that are available."""

    parameters: int
    trained: int
    memory_gb: float  # at its peak, counted
    available_gb: float  # memory of the GPU, or of the machine
    checkpoint_gb: float
    checkpoints: int  # on disk at once: keep_checkpoints, the best, and the one being written
    free_gb: float  # disk
    model_gb: float = 0.0  # of model/
    measured_gb: float | None = None  # of GPU memory
    steps_per_s: float | None = None
    step_hours: float | None = None
    hours: float | None = None  # steps, evaluations and previews
    gpus: int = 1  # that share each step

    def __str__(self) -> str:
        is_toy = self.parameters < MIN_PARAMETERS
        toy = ": a toy; for pictures of your own set preset to 't4' or another" if is_toy else ""
        measured = "" if self.measured_gb is None else f", {self.measured_gb:.1f} GB measured"
        lines = [
            f"trained     {self.trained / 1e6:.1f} M of {self.parameters / 1e6:.1f} M parameters{toy}",
            f"memory      {self.memory_gb:.1f} GB counted{measured}, of {self.available_gb:.0f} GB",
            f"checkpoints {self.checkpoints} x {_format_size(self.checkpoint_gb)}, "
            f"of {_format_size(self.free_gb)} free",
        ]
        if self.gpus > 1:
            lines.append(
                f"GPUs        {self.gpus} share each step, in a process each that captures nothing"
            )
        if self.hours is not None:
            lines.append(
                f"time        about {format_hours(self.hours)}: {format_hours(self.step_hours)} of steps at "
                f"{self.steps_per_s:.2f} a second, the rest for evaluations and previews"
            )
            if self.hours > HOST.session_hours:
                lines.append(f"            {HOST.if_longer}")
        return "\n".join(lines)


def format_hours(hours: float) -> str:
    """Return a time in hours, or in minutes if it is under an hour."""
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(60 * hours, 1):.0f} min"


def _format_size(gb: float) -> str:
    large = f"{gb:.1f} GB" if gb >= 1 else f"{1e3 * gb:.1f} MB"
    return large if gb >= 1e-3 else f"{1e6 * gb:.0f} kB"


def estimate_resources(config: TrainConfig, run: Run, device: Device) -> ResourceEstimate:
    """Estimate a training's memory, disk and hours, by timing a few steps on random weights.

    Raises RunError if the dataset is missing, if the training will not fit, or would take days without a GPU;
    OutOfMemoryError if a timed step runs out of memory (OOM).
    """
    run.require(run.split_metadata("train"), "dataset")
    refuse_slow(config, device)
    shared = share(config, gpus := count_gpus())
    config = shared or config
    estimate = replace(refuse_too_large(config, run, device), gpus=gpus if shared else 1)
    device = replace(device, captures=device.captures and estimate.gpus == 1)
    with machine_errors(config):
        _reset_peak_gb(device)
        step_s, forward_s, peak_gb = benchmark_step(config, device, 10 if _is_gpu(device) else 3)
        if _is_gpu(device):  # leave it to the training
            torch.cuda.empty_cache()
    step_hours = config.max_steps * step_s / 3600
    hours = step_hours + _count_forwards_beside_steps(config, run) * forward_s / 3600
    times = {"steps_per_s": 1 / step_s, "step_hours": step_hours, "hours": hours}
    return replace(estimate, measured_gb=peak_gb, **times)


def _count_forwards_beside_steps(config: TrainConfig, run: Run) -> int:
    images, suffix = len(run.split_images("train")), run.read_config("dataset")["suffix"]
    per_sample = config.num_inference_steps * (2 if config.guidance_scale > 1 else 1)
    prior = round(config.prior_share * images) if suffix else 0
    previews = config.max_steps // config.preview_every_steps + 2
    evaluations = config.max_steps // config.validate_every_steps + 2
    pairs = config.validation_pairs + config.validation_pairs // 2
    samples = prior + previews * (len(config.prompts) or 4)
    # in one-image passes; the last term ranks the images
    return samples * per_sample + evaluations * pairs + 4 * images


def refuse_too_large(config: TrainConfig, run: Run, device: Device) -> ResourceEstimate:
    """Estimate a training's memory and disk. Raises a RunError that names a setting if the training will not fit."""
    check_settings(config, device, processes=1)
    estimate = _estimate_memory_and_disk(config, run, device)
    if estimate.memory_gb > estimate.available_gb:
        raise RunError(
            f"this training needs about {estimate.memory_gb:.1f} GB of memory and there are "
            f"{estimate.available_gb:.1f} GB: {memory_advice(config)}"
        )
    if estimate.checkpoints * estimate.checkpoint_gb + estimate.model_gb > estimate.free_gb:
        raise RunError(
            f"{estimate.checkpoints} checkpoints of {_format_size(estimate.checkpoint_gb)} and a model of "
            f"{_format_size(estimate.model_gb)} do not fit into the {_format_size(estimate.free_gb)} free at "
            f"{run.folder}: lower keep_checkpoints, set method to 'lora', or free some space"
        )
    return estimate


def _estimate_memory_and_disk(config: TrainConfig, run: Run, device: Device) -> ResourceEstimate:
    weights = list(_meta_model(config, device).parameters())
    trained = sum(p.numel() for p in weights if p.requires_grad)
    weight_bytes = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    frozen_bytes = sum(p.numel() * p.element_size() for p in weights if not p.requires_grad)
    optimizer_bytes = trained * (2 if config.optimizer == "adamw8bit" else 8)
    ema_bytes = trained * 4 if config.use_ema else 0
    checkpoint_bytes = weight_bytes + optimizer_bytes + ema_bytes
    held = weight_bytes + frozen_bytes + optimizer_bytes
    held += 0 if config.offload_ema else ema_bytes
    step = ALLOCATOR_OVERHEAD * activation_memory(config, device)
    beside = memory_beside_steps(config, device)
    if device.captures and not config.optimizer_in_backward:
        beside += weight_bytes  # the gradients, which stay where they are
    return ResourceEstimate(
        parameters=sum(p.numel() for p in weights),
        trained=trained,
        memory_gb=(held + max(step, beside)) / GB + (CUDA_CONTEXT_GB if _is_gpu(device) else 0.0),
        available_gb=_memory_bytes(device) / GB,
        checkpoint_gb=checkpoint_bytes / GB,
        checkpoints=config.keep_checkpoints + 2,
        free_gb=_free_disk_bytes(run, checkpoint_bytes) / GB,
        model_gb=_count_model(config) * device.dtype.itemsize / GB,
    )


def _counted_once(count: Callable[[TrainConfig, Device], float]) -> Callable[..., float]:
    """Remember a count by all that it depends on: a plan counts, then its training, and each trial of a sweep."""
    known: dict[tuple, float] = {}

    @wraps(count)
    def counted(config: TrainConfig, device: Device) -> float:
        _, settings = read_base(config.base_model, config.vae)
        values = (getattr(config, name) for name in MEMORY_SETTINGS)
        key = (json.dumps(settings, sort_keys=True), device, *values)
        if key not in known:
            known[key] = count(config, device)
        return known[key]

    return counted


@_counted_once
def activation_memory(config: TrainConfig, device: Device) -> int:
    """Return the peak bytes of a step's activations and gradients, in the forward and backward passes."""
    model = _meta_model(config, device)
    largest = max(p.numel() for p in model.parameters() if p.requires_grad)
    peak = peak_activation_bytes(model, latent_side(config), config, device)
    # with the largest weight and its gradient in float32, for its own step
    return peak + 8 * largest if config.optimizer_in_backward else peak


@_counted_once
def memory_beside_steps(config: TrainConfig, device: Device) -> float:
    """Return the bytes beside the trained model at the most of a preview, a validation and model/'s reading back.

    The images' encoding comes before the model is on the GPU, and takes less than that.
    """
    family, settings = read_base(config.base_model, config.vae)
    side, dtype = latent_side(config), device.dtype
    validated = min(config.validation_pairs, max(1, MAX_LATENT_PIXELS // side**2))
    drawn = 8 if config.prior_share else len(config.prompts) or 4
    drawn = min(drawn, max(1, DRAW_PIXELS // config.resolution_px**2))
    rows = max(validated, drawn * (2 if config.guidance_scale > 1 else 1))
    model = _meta_model(config, device)
    forward = peak_forward_bytes(model, device, lambda: model(*random_inputs(model, rows, side)))
    with torch.device("meta"):
        vae_dtype = family.vae_dtype(settings["vae"], dtype)
        vae = nn.Module.to(AutoencoderKL.from_config(settings["vae"]), vae_dtype)
    decode_in_tiles(vae, config.resolution_px)
    latents = 1, vae.config.latent_channels, side, side
    decode = peak_forward_bytes(
        vae,
        replace(device, precision="no"),
        lambda: vae.decode(torch.randn(latents, dtype=vae_dtype)),
    )
    vae_bytes = sum(p.numel() for p in vae.parameters()) * vae_dtype.itemsize
    encoders = 0 if config.train_text_encoder else _count_encoders(family, settings)
    preview = vae_bytes + ALLOCATOR_OVERHEAD * max(forward, decode)
    validation = encoders * dtype.itemsize + ALLOCATOR_OVERHEAD * forward * validated / rows
    return max(preview, validation)


def _count_encoders(family: Family, settings: Settings) -> int:
    with torch.device("meta"):
        return sum(
            p.numel() for e in build_encoders(family, settings).values() for p in e.parameters()
        )


def _count_model(config: TrainConfig) -> int:
    """Return the number of parameters in model/."""
    family, settings = read_base(config.base_model, config.vae)
    name, kind = family.DENOISER
    with torch.device("meta"):
        modules = kind.from_config(settings[name]), AutoencoderKL.from_config(settings["vae"])
    return _count_encoders(family, settings) + sum(
        p.numel() for m in modules for p in m.parameters()
    )


def _meta_model(config: TrainConfig, device: Device) -> Denoiser:
    with torch.device("meta"):
        return build_denoiser(config, device.dtype)


def latent_side(config: TrainConfig) -> int:
    """Return the side length of a square image's latents: resolution_px / 8 for Stable Diffusion."""
    _, settings = read_base(config.base_model, config.vae)
    return config.resolution_px // 2 ** (len(settings["vae"]["block_out_channels"]) - 1)


def _is_gpu(device: Device) -> bool:
    return device.device.type == "cuda"


def _memory_bytes(device: Device) -> float:
    if _is_gpu(device):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_disk_bytes(run: Run, checkpoint_bytes: float) -> float:
    disk = next(p for p in (run.folder, *run.folder.absolute().parents) if p.is_dir())
    # what this run's checkpoints take counts as free
    free = shutil.disk_usage(disk).free + folder_bytes(run.checkpoints)
    # the mirror needs room for one checkpoint fewer
    return min(free, remote_room_bytes(run) + checkpoint_bytes)


def benchmark_step(
    config: TrainConfig, device: Device, steps: int
) -> tuple[float, float, float | None]:
    """Time training steps on random weights; return seconds per step, forward seconds per image, and peak GPU GB."""
    gpu = [torch.cuda.current_device()] if device.device.type == "cuda" else []  # the others rest
    with torch.random.fork_rng(devices=gpu), torch.device(device.device):
        module = build_denoiser(config, device.dtype)
        weights = module.trained_weights()
        optimizer = make_optimizer(weights, config)
        noisy, timesteps, texts = random_inputs(
            module, config.train_batch_size, latent_side(config)
        )
        inputs = {"noisy": noisy, "timesteps": timesteps} | texts

        def forward(noisy: Tensor, timesteps: Tensor, **conditioning: Tensor) -> Tensor:
            with device.autocast():
                return module(noisy, timesteps, conditioning).float().square().mean()

        def forward_backward(**inputs: Tensor) -> Tensor:
            loss = forward(**inputs)
            loss.backward()
            return loss.detach()

        in_backward = None
        if config.optimizer_in_backward:
            in_backward = StepInBackward(optimizer, weights.values(), config.max_grad_norm)
        elif device.captures:
            for weight in weights.values():
                weight.grad = torch.zeros_like(weight)
            forward_backward = Captured(forward_backward, "the training step")

        def step() -> None:
            for _ in range(config.gradient_accumulation_steps):
                forward_backward(**inputs)
            if in_backward:
                in_backward.end_step()
                return
            optimizer.step()
            optimizer.zero_grad(set_to_none=not device.captures)

        step_s, peak_gb = _median_s(step, 2 + steps), _reset_peak_gb(device)
        with torch.no_grad():
            forward_s = _median_s(lambda: forward(**inputs), 4) / config.train_batch_size
    return step_s, forward_s, peak_gb


def _reset_peak_gb(device: Device) -> float | None:
    if not _is_gpu(device):
        return None
    peak = torch.cuda.max_memory_reserved() / GB + CUDA_CONTEXT_GB
    torch.cuda.reset_peak_memory_stats()
    return peak


def _median_s(function: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])  # after a warm-up
