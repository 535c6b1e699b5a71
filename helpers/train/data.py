"""The data of training: cached latents and captions, their order, and the noise of each image.

Everything is a function of the seed and a position, with no memory: position p is the p-th image that training sees,
over all epochs and processes. So a resumed run needs one integer, and any number of processes or resumes sees the same
images, noise and timesteps. torch's own samplers keep a state that would have to be saved and shared instead.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from accelerate import Accelerator
from torch import Tensor

from helpers.config import TrainConfig

Batch = list[tuple[Tensor, ...]]  # the micro-batches of a step: latents, texts, noise, timesteps


@dataclass(frozen=True)
class LatentDataset:
    """Images as latents and captions as embeddings, both computed once (latents.py).

    latents  of each image (4, h, w), or (V, 4, h, w) where V augmentations of it are cached; scaled by the
             autoencoder's scaling_factor; images of one bucket share h and w
    texts    (N, T, D), the text encoder's last hidden state; (N, T) token ids where that encoder is trained
    names    of each image, for messages
    """

    latents: Sequence[Tensor]
    texts: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def __add__(self, other: "LatentDataset") -> "LatentDataset":
        return LatentDataset(
            [*self.latents, *other.latents],
            torch.cat([self.texts, other.texts]),
            self.names + other.names,
        )

    def shape(self, index: int) -> torch.Size:
        """(4, h, w) of an image."""
        return self.latents[index].shape[-3:]

    def augmentations(self, index: int) -> Tensor:
        """An image's latents as (V, 4, h, w)."""
        return self.latents[index].reshape(-1, *self.shape(index))

    def buckets(self) -> list[list[int]]:
        """The images' indices, grouped by shape."""
        by_shape: dict[torch.Size, list[int]] = {}
        for index in range(len(self)):
            by_shape.setdefault(self.shape(index), []).append(index)
        return list(by_shape.values())


class TrainData:
    """The batches of every step; each process gets its share."""

    def __init__(
        self,
        dataset: LatentDataset,
        null_embedding: Tensor,
        num_timesteps: int,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        """`null_embedding` is the empty caption (1, ...), shaped as one of `dataset.texts`."""
        self.dataset, self.null_embedding = dataset, null_embedding
        self.num_timesteps, self.config, self.accelerator = num_timesteps, config, accelerator
        self.micro_batch = config.train_batch_size * accelerator.num_processes
        self.order = BatchOrder(dataset.buckets(), self.micro_batch, config.seed)

    @property
    def images_per_step(self) -> int:
        """The effective batch: micro-batch x gradient accumulation x processes."""
        return self.micro_batch * self.config.gradient_accumulation_steps

    def get_batch(self, step: int) -> Batch:
        """This process's micro-batches of optimizer step `step`, counted from 0."""
        count = self.config.gradient_accumulation_steps
        return [self._micro_batch(step * count + i) for i in range(count)]

    def names(self, step: int) -> list[list[str]]:
        """The images of each micro-batch of a step, over all processes."""
        count = self.config.gradient_accumulation_steps
        numbers = range(step * count, (step + 1) * count)
        return [[self.dataset.names[i] for i in self.order.batch(n)] for n in numbers]

    def _micro_batch(self, number: int) -> tuple[Tensor, ...]:
        config, size = self.config, self.config.train_batch_size
        offset = self.accelerator.process_index * size
        first = number * self.micro_batch + offset
        positions = range(first, first + size)
        images = self.order.batch(number)[offset : offset + size]
        latents = torch.stack([self._latent(i, p) for i, p in zip(images, positions, strict=True)])
        # Sample noise and a random timestep for each image
        noise, timesteps, chances = zip(
            *(
                sample_noise_and_timestep(p, latents.shape[1:], self.num_timesteps, config.seed)
                for p in positions
            ),
            strict=True,
        )
        texts = self.dataset.texts[images]
        # Drop some captions, for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)
        cfg_drop_mask = torch.tensor(chances) < config.caption_dropout
        texts = torch.where(
            cfg_drop_mask.view(-1, *[1] * (texts.ndim - 1)), self.null_embedding, texts
        )
        noise = self._offset(torch.stack(noise), positions)
        tensors = (latents, texts, noise, torch.tensor(timesteps))
        device = self.accelerator.device
        if device.type == "cuda":  # pinned memory is copied without waiting for the GPU
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)

    def _latent(self, index: int, position: int) -> Tensor:
        choices = self.dataset.augmentations(index)
        if len(choices) == 1:
            return choices[0]
        return choices[augmentation_at(position, len(choices), self.config.seed)]

    def _offset(self, noise: Tensor, positions: range) -> Tensor:
        """Add noise offset (crosslabs.org, 2023), by which a model learns images that are dark or bright overall."""
        if self.config.noise_offset == 0:
            return noise
        shape, seed = torch.Size((noise.shape[1], 1, 1)), self.config.seed + 1
        offsets = [sample_noise_and_timestep(p, shape, 1, seed)[0] for p in positions]
        return noise + self.config.noise_offset * torch.stack(offsets)


def generator(*key: object) -> torch.Generator:
    """A random generator on the CPU, seeded by a hash of `key` alone."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


def image_at(position: int, count: int, seed: int) -> int:
    """The image at a position: every epoch is a new permutation of `count` images."""
    epoch, place = divmod(position, count)
    return _permutation(seed, epoch, count)[place]


def sample_noise_and_timestep(
    position: int, shape: torch.Size, num_timesteps: int, seed: int
) -> tuple[Tensor, int, float]:
    """The noise (`shape`), the timestep, and a number in 0..1 that decides caption dropout, at a position."""
    source = generator(seed, "draws", position)
    noise = torch.randn(shape, generator=source)
    timestep = int(torch.randint(0, num_timesteps, (), generator=source))
    return noise, timestep, float(torch.rand((), generator=source))


def augmentation_at(position: int, count: int, seed: int) -> int:
    """Which of an image's `count` cached augmentations (crops, mirrored or not) is used at a position."""
    return int(torch.randint(0, count, (), generator=generator(seed, "variant", position)))


class BatchOrder:
    """The order of batches; all images of a batch come from one aspect-ratio bucket.

    The images of a bucket come in the order of image_at; what a bucket has left over at the end of an
    epoch, always less than a batch, comes with the next. With one bucket, batch b is positions
    b * size to (b + 1) * size.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], size: int, seed: int) -> None:
        """`buckets` holds the images' indices; `size` is a batch's, over all processes."""
        self.buckets, self.size, self.seed = buckets, size, seed
        self.count = sum(len(bucket) for bucket in buckets)
        self._bucket_of_batch = lru_cache(maxsize=4)(self._shuffle_buckets)

    def batch(self, number: int) -> list[int]:
        """The images of a batch, by its number from the start of training."""
        epoch = number * self.size // self.count
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        labels, place = self._bucket_of_batch(epoch), number - self._batches_before(epoch)
        bucket = self.buckets[labels[place]]
        first = epoch * len(bucket) // self.size + labels[:place].count(labels[place])
        positions = range(first * self.size, (first + 1) * self.size)
        return [bucket[image_at(p, len(bucket), self.seed)] for p in positions]

    def _batches_before(self, epoch: int) -> int:
        return sum(epoch * len(bucket) // self.size for bucket in self.buckets)

    def _shuffle_buckets(self, epoch: int) -> list[int]:
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
