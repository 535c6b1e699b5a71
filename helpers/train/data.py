"""The data of training: cached latents and captions, their order, and the noise of each image.

Everything is a function of the seed and a position: position p is the p-th image that training sees, over all epochs
and processes. So a resumed run needs one integer, and any number of processes with the same effective batch (with
buckets, the same micro-batch over all processes) sees the same images, noise and timesteps. torch's own samplers keep
a state instead, which would have to be saved and shared.
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
    """A dataset's images as latents and its captions as embeddings, computed by latents.py.

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
        texts = torch.cat([self.texts, other.texts])
        return LatentDataset([*self.latents, *other.latents], texts, self.names + other.names)

    def shape(self, index: int) -> torch.Size:
        """Return the shape (4, h, w) of an image's latents."""
        return self.latents[index].shape[-3:]

    def augmentations(self, index: int) -> Tensor:
        """Return the latents (V, 4, h, w) of an image's V cached augmentations: its crops and mirror images."""
        return self.latents[index].reshape(-1, *self.shape(index))

    def buckets(self) -> list[list[int]]:
        """Return the image indices as lists, one list for each shape of latents."""
        by_shape: dict[torch.Size, list[int]] = {}
        for index in range(len(self)):
            by_shape.setdefault(self.shape(index), []).append(index)
        return list(by_shape.values())


class TrainData:
    """The source of training batches. Each process makes only its own share of the images."""

    def __init__(
        self,
        dataset: LatentDataset,  # with samples for prior preservation, if any
        null_embedding: Tensor,  # (1, ...), of the empty caption
        num_timesteps: int,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        self.dataset, self.null_embedding = dataset, null_embedding
        self.num_timesteps, self.config, self.accelerator = num_timesteps, config, accelerator
        self.images_per_micro_batch = config.train_batch_size * accelerator.num_processes
        self.order = BatchOrder(dataset.buckets(), self.images_per_micro_batch, config.seed)

    @property
    def images_per_step(self) -> int:
        """The effective batch size: train_batch_size x processes x gradient_accumulation_steps."""
        return self.images_per_micro_batch * self.config.gradient_accumulation_steps

    def get_batch(self, step: int) -> Batch:
        """Return this process's micro-batches of an optimizer step, counted from 0."""
        count = self.config.gradient_accumulation_steps
        return [self._micro_batch(step * count + i) for i in range(count)]

    def names(self, step: int) -> list[list[str]]:
        """Return the names of the images in each micro-batch of a step, over all processes."""
        count = self.config.gradient_accumulation_steps
        batches = [self.order.batch(step * count + i) for i in range(count)]
        return [[self.dataset.names[i] for i in batch] for batch in batches]

    def _micro_batch(self, number: int) -> tuple[Tensor, ...]:
        config, size = self.config, self.config.train_batch_size
        offset = self.accelerator.process_index * size
        first = number * self.images_per_micro_batch + offset
        positions = range(first, first + size)
        images = self.order.batch(number)[offset : offset + size]
        latents = torch.stack([self._latent(i, p) for i, p in zip(images, positions, strict=True)])
        # Sample noise and a random timestep for each image
        shape, timesteps = latents.shape[1:], self.num_timesteps
        draws = [sample_noise_and_timestep(p, shape, timesteps, config.seed) for p in positions]
        noise, timesteps, chances = zip(*draws, strict=True)
        texts = self.dataset.texts[images]
        # Drop some captions, for classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598)
        chances = torch.tensor(chances).view(-1, *[1] * (texts.ndim - 1))
        cfg_drop_mask = chances < config.caption_dropout
        texts = torch.where(cfg_drop_mask, self.null_embedding, texts)
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
        """Add a random offset to each channel of an image's noise (crosslabs.org, 2023), for dark and bright images."""
        if self.config.noise_offset == 0:
            return noise
        sources = [generator(self.config.seed + 1, "draws", p) for p in positions]
        offsets = [torch.randn(noise.shape[1], 1, 1, generator=source) for source in sources]
        return noise + self.config.noise_offset * torch.stack(offsets)


def generator(*key: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a random generator, seeded by a hash of `key`."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8]) >> 1)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch)).tolist()


def image_at(turn: int, count: int, seed: int) -> int:
    """Return the index (0..count-1) of a bucket's image at `turn`; each pass over the bucket is a new permutation."""
    epoch, place = divmod(turn, count)
    return _permutation(seed, epoch, count)[place]


def sample_noise_and_timestep(
    position: int, shape: torch.Size, num_timesteps: int, seed: int
) -> tuple[Tensor, int, float]:
    """Return the noise, timestep and caption-dropout number (0..1) of the image at `position` in training order."""
    source = generator(seed, "draws", position)
    noise = torch.randn(shape, generator=source)
    timestep = int(torch.randint(0, num_timesteps, (), generator=source))
    return noise, timestep, float(torch.rand((), generator=source))


def augmentation_at(position: int, count: int, seed: int) -> int:
    """Return the index (0..count-1) of the cached augmentation for the image at `position` in training order."""
    return int(torch.randint(0, count, (), generator=generator(seed, "variant", position)))


class BatchOrder:
    """The order of training images in batches, each batch from one aspect-ratio bucket.

    A bucket's images come in the order of image_at. Its rest at the end of an epoch, less than a batch, comes with the
    next epoch. With one bucket, batch b is its turns b * size to (b + 1) * size.
    """

    def __init__(self, buckets: Sequence[Sequence[int]], size: int, seed: int) -> None:
        """Store each bucket's image indices, and `size`, the images per micro-batch over all processes."""
        self.buckets, self.size, self.seed = buckets, size, seed
        self.count = sum(len(bucket) for bucket in buckets)
        self._bucket_of_batch = lru_cache(maxsize=4)(self._shuffle_buckets)

    def batch(self, number: int) -> list[int]:
        """Return the image indices of batch `number`, counted from 0 at the start of training."""
        epoch = number * self.size // self.count
        while self._batches_before(epoch + 1) <= number:
            epoch += 1
        labels, place = self._bucket_of_batch(epoch), number - self._batches_before(epoch)
        bucket = self.buckets[labels[place]]
        first = self._whole_batches(bucket, epoch) + labels[:place].count(labels[place])
        turns = range(first * self.size, (first + 1) * self.size)
        return [bucket[image_at(turn, len(bucket), self.seed)] for turn in turns]

    def _whole_batches(self, bucket: Sequence[int], epoch: int) -> int:
        """Return the number of full batches that a bucket's images make in the first `epoch` epochs."""
        return epoch * len(bucket) // self.size

    def _batches_before(self, epoch: int) -> int:
        return sum(self._whole_batches(bucket, epoch) for bucket in self.buckets)

    def _shuffle_buckets(self, epoch: int) -> list[int]:
        """Return a bucket index for each batch of an epoch, in random order."""
        labels = []
        for label, bucket in enumerate(self.buckets):
            count = self._whole_batches(bucket, epoch + 1) - self._whole_batches(bucket, epoch)
            labels += [label] * count
        order = torch.randperm(len(labels), generator=generator(self.seed, "buckets", epoch))
        return [labels[i] for i in order]
