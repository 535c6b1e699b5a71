"""Draw scenes as tensors, and train the components of the tiny base model."""

import math
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pool

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import random_scene


def _pixels(style: str, held_out: bool | None, seed: int) -> np.ndarray:
    paint = {"flat": paint_flat, "watercolour": paint_watercolour}[style]
    return np.asarray(paint(random_scene(seed, held_out=held_out)))


def draw_scenes(style: str, seeds: range, *, held_out: bool | None = False) -> Tensor:
    """Draw one scene per seed, in flat or watercolour style, as uint8 (N, 3, SIZE_PX, SIZE_PX)."""
    with Pool() as pool:
        jobs = pool.imap(partial(_pixels, style, held_out), seeds, chunksize=32)
        pixels = np.stack(list(tqdm(jobs, f"draw {style}", total=len(seeds), mininterval=5)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def to_model(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels (N, 3, H, W) to float32 in -1..1, in channels-last memory format."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def cosine_learning_rate(step: int, steps: int, peak: float) -> float:
    """Return a step's learning rate: a linear warm-up, then cosine decay to 2% of the peak (arXiv:1608.03983)."""
    cosine = 0.49 * (1 + math.cos(math.pi * step / steps)) + 0.02
    return peak * min(1, (step + 1) / 100) * cosine


def optimise(
    modules: list[nn.Module],
    losses: Iterator[Tensor],
    steps: int,
    peak_learning_rate: float,
    ema_decay: float,
    name: str,
) -> None:
    """Train modules with AdamW, one step per loss. At the end, replace the weights by their moving average (EMA)."""
    params = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, betas=(0.9, 0.98), weight_decay=1e-2)
    ema = EMAModel(params, decay=ema_decay)
    running, bar = None, tqdm(range(steps), name, mininterval=30)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = cosine_learning_rate(step, steps, peak_learning_rate)
        loss = next(losses)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        ema.step(params)
        running = loss.item() if running is None else 0.99 * running + 0.01 * loss.item()
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    ema.copy_to(params)
