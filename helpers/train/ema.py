"""The moving average of the weights, which draws steadier pictures than the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average with a warm-up, step for step what diffusers' EMAModel computes.

    Kept on the weights' device, or on the CPU with `offload`.
    """

    def __init__(self, weights: dict[str, nn.Parameter], decay: float, offload: bool) -> None:
        self.weights, self.decay = weights, decay
        self.average = {
            name: p.detach().to("cpu" if offload else p.device, copy=True)
            for name, p in weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        decay = min(self.decay, step / (9 + step)) if step > 1 else 0.0
        averages = list(self.average.values())
        weights = [self.weights[n].detach().to(kept.device) for n, kept in self.average.items()]
        torch._foreach_lerp_(averages, weights, 1 - decay)  # all of them in a few kernels

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the average in the weights' place inside, and the same weights to the bit after."""
        own = {n: p.detach().to(self.average[n].device, copy=True) for n, p in self.weights.items()}
        self._put(self.average)
        yield
        self._put(own)

    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.weights[name].data.copy_(tensor)
