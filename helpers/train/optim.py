"""What turns gradients into steps: AdamW, whole or in 8 bits, which passes over gradients that are no numbers."""

import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from helpers.config import TrainConfig
from helpers.core.errors import RunError


def make_optimizer(weights: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); the text encoder's weights have their own rate.

    Raises RunError where 8-bit Adam (Dettmers et al. 2022, arXiv:2110.02861) is asked for and cannot run.
    """
    text = [p for name, p in weights.items() if name.startswith("text_encoder.")]
    unet = [p for name, p in weights.items() if not name.startswith("text_encoder.")]
    groups: list[dict[str, Any]] = [{"params": unet, "lr": config.learning_rate}]
    if text:
        groups.append({"params": text, "lr": config.text_encoder_lr})
    if config.optimizer == "adamw8bit":
        # bitsandbytes does so at its first step; done before it, a resumed run rounds alike
        for p in weights.values():
            p.data = p.data.contiguous()
        return _bitsandbytes().optim.AdamW8bit(groups, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def _bitsandbytes() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RunError(
            "optimizer is 'adamw8bit' but bitsandbytes is not installed: "
            "run `pip install -r requirements-gpu.txt`, or set optimizer to 'adamw'"
        )
    import bitsandbytes

    return bitsandbytes


def step_if_finite(
    accelerator: Accelerator, optimizer: Any, weights: Iterable[Tensor], most: float
) -> Tensor:
    """Clip the gradients' norm to `most` (0: not at all) and step, unless it is no number; return what it was.

    A fused optimizer does both in one pass without waiting for the GPU to know, told by the attributes that GradScaler
    sets on it. `optimizer` is accelerate's; where it scales for fp16, it looks by itself.
    """
    inner, most = optimizer.optimizer, most or math.inf
    if optimizer.scaler is not None or not inner.defaults.get("fused"):
        norm = accelerator.clip_grad_norm_(weights, most)
        if optimizer.scaler is not None or norm.isfinite():
            optimizer.step()
        return norm
    norm = get_total_norm([p.grad for p in weights if p.grad is not None])
    inner.grad_scale = (norm / most).clamp(min=1)  # gradients are divided by it
    inner.found_inf = (~norm.isfinite()).float()
    optimizer.step()
    del inner.grad_scale, inner.found_inf
    return norm


def restore_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments their weight's memory layout (channels-last), which fused kernels take for granted."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
