"""The optimizer step: AdamW, clipping, skipped NaN gradients, EMA, and the `TrainState` that a step changes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.train.in_backward import StepInBackward


@dataclass
class TrainState:
    """The state that an optimizer step changes."""

    weights: dict[str, nn.Parameter]  # the trained ones, by name
    optimizer: Any  # accelerate's
    lr_scheduler: Any
    scaler: Any = None  # of fp16's gradients
    ema: "MovingAverage | None" = None
    step: int = 0  # optimizer steps taken
    nonfinite_steps: list[set[str]] = field(default_factory=list)  # the last ones in a row; images
    saved_step: int = 0
    saved_at: float = 0.0  # time.monotonic()
    stopped_early: bool = False
    in_backward: StepInBackward | None = None  # if each weight is stepped in the backward pass


def make_optimizer(weights: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with a separate learning rate for text encoders.

    Raises RunError if 8-bit Adam (Dettmers et al. 2022, arXiv:2110.02861) is asked for and not installed.
    """
    is_text = {name: name.startswith("text_encoder") for name in weights}  # or text_encoder_2
    text = [p for name, p in weights.items() if is_text[name]]
    denoiser = [p for name, p in weights.items() if not is_text[name]]
    groups: list[dict[str, Any]] = [{"params": denoiser, "lr": config.learning_rate}]
    if text:
        groups.append({"params": text, "lr": config.text_encoder_lr})
    if config.optimizer == "adamw8bit":
        # bitsandbytes does this in its first step; done before it, a resumed run rounds the same way
        for p in weights.values():
            p.data = p.data.contiguous()
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise RunError(
                "optimizer is 'adamw8bit' but bitsandbytes is not installed: "
                "run `pip install -r requirements-gpu.txt`, or set optimizer to 'adamw'"
            ) from None
        return AdamW8bit(groups, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def clip_and_step(accelerator: Accelerator, state: TrainState, max_grad_norm: float) -> Tensor:
    """Clip the gradients to `max_grad_norm` (0: no clipping) and step the optimizer; return the gradient norm.

    A NaN or inf norm skips the step, or with optimizer_in_backward that gradient alone. Fused AdamW clips and skips
    inside its kernel, without a GPU sync, by the attributes that GradScaler sets on it. With fp16's scaler
    accelerate's optimizer checks for NaN and inf itself.
    """
    if state.in_backward:  # every weight was clipped and stepped during backward, by in_backward.py
        return state.in_backward.end_step()
    optimizer, weights = state.optimizer, state.weights.values()
    inner, max_grad_norm = optimizer.optimizer, max_grad_norm or math.inf
    if optimizer.scaler is not None or not inner.defaults.get("fused"):
        norm = accelerator.clip_grad_norm_(weights, max_grad_norm)
        if optimizer.scaler is not None or norm.isfinite():
            optimizer.step()
        return norm
    norm = get_total_norm([p.grad for p in weights if p.grad is not None])
    inner.grad_scale = (norm / max_grad_norm).clamp(min=1)  # gradients are divided by it
    inner.found_inf = (~norm.isfinite()).float()
    optimizer.step()
    del inner.grad_scale, inner.found_inf
    return norm


def restore_layout(optimizer: torch.optim.Optimizer) -> None:
    """Copy loaded optimizer tensors into their weights' memory layout (channels-last), as fused kernels expect."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


class MovingAverage:
    """Exponential moving average (EMA) of the weights with a warm-up, equal to diffusers' EMAModel step for step.

    EMAModel itself launches kernels weight by weight or copies all weights at each step, and cannot offload to the CPU.
    """

    def __init__(self, weights: dict[str, nn.Parameter], decay: float, offload: bool) -> None:
        self.weights, self.decay = weights, decay
        self.average = {
            name: p.detach().to("cpu" if offload else p.device, torch.float32, copy=True)
            for name, p in weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, step / (9 + step)) if step > 1 else 0.0
        averages = list(self.average.values())
        weights = [self.weights[n].detach().to(a) for n, a in self.average.items()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # all weights in a few kernels

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by their average inside this context, and restore them bit for bit afterwards."""
        own = {n: p.detach().to(self.average[n].device, copy=True) for n, p in self.weights.items()}
        self._copy(self.average)
        yield
        self._copy(own)

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.weights[name].data.copy_(tensor)
