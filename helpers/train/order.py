"""Which image comes when, and with what noise: functions of the seed and a position, with no memory.

Position p is the p-th image that training sees, over all epochs and processes. So a resumed run needs
one integer, and any number of processes or resumes sees the same images, noise and timesteps.
"""

import hashlib
from collections.abc import Sequence
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


def variant_at(position: int, variants: int, seed: int) -> int:
    """Which of an image's cached variants (crops, mirrored or not) is taken at a position."""
    return int(torch.randint(0, variants, (), generator=generator(seed, "variant", position)))


class Order:
    """Which images make a batch, where a batch takes images of one bucket only.

    The images of a bucket come in the order of image_at; what a bucket has left over at the end of an
    epoch, always less than a batch, comes with the next. With one bucket, batch b is positions
    b * size to (b + 1) * size.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], size: int, seed: int) -> None:
        """`buckets` holds the images' indices; `size` is a batch's, over all processes."""
        self.buckets, self.size, self.seed = buckets, size, seed
        self.count = sum(len(bucket) for bucket in buckets)
        self._labels = lru_cache(maxsize=4)(self._labels_of)

    def batch(self, number: int) -> list[int]:
        """The images of a batch, by its number from the start of training."""
        epoch = number * self.size // self.count
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        labels, place = self._labels(epoch), number - self._batches_before(epoch)
        bucket = self.buckets[labels[place]]
        first = epoch * len(bucket) // self.size + labels[:place].count(labels[place])
        positions = range(first * self.size, (first + 1) * self.size)
        return [bucket[image_at(p, len(bucket), self.seed)] for p in positions]

    def _batches_before(self, epoch: int) -> int:
        return sum(epoch * len(bucket) // self.size for bucket in self.buckets)

    def _labels_of(self, epoch: int) -> list[int]:
        """The bucket of each batch of an epoch."""
        labels = [
            label
            for label, bucket in enumerate(self.buckets)
            for _ in range(
                (epoch + 1) * len(bucket) // self.size - epoch * len(bucket) // self.size
            )
        ]
        shuffled = torch.randperm(len(labels), generator=generator(self.seed, "buckets", epoch))
        return [labels[i] for i in shuffled]
