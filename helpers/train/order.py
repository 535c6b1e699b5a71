"""Which image comes when, and with what noise: functions of the seed and a position, with no memory.

Position p is the p-th image that training sees, over all epochs and processes. So a resumed run needs
one integer, and any number of processes or resumes sees the same images, noise and timesteps.
"""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A random generator on the CPU that depends on `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


def image_at(position: int, count: int, seed: int) -> int:
    """The image that comes at a position: each of `count` once an epoch, in an order of its own each time."""
    epoch, place = divmod(position, count)
    return _permutation(seed, epoch, count)[place]


def draws_at(
    position: int, shape: torch.Size, timesteps: int, seed: int
) -> tuple[Tensor, int, float]:
    """The noise (`shape`), timestep and dropout number in 0..1 of a position."""
    source = generator(seed, "draws", position)
    noise = torch.randn(shape, generator=source)
    timestep = int(torch.randint(0, timesteps, (), generator=source))
    return noise, timestep, float(torch.rand((), generator=source))
