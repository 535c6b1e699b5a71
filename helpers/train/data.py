"""The batches of training: a function of the step alone, made while the device still works on the step before."""

import torch
from accelerate import Accelerator
from torch import Tensor

from helpers.config import TrainConfig
from helpers.train.latents import Examples
from helpers.train.order import Order, draws_at, variant_at


class Batches:
    """This process's share of every batch."""

    def __init__(
        self,
        examples: Examples,
        no_words: Tensor,
        timesteps: int,
        config: TrainConfig,
        accelerator: Accelerator,
    ) -> None:
        """`no_words` is the empty caption (1, ...) as `examples.texts` have theirs; `timesteps` how many there are."""
        self.examples, self.no_words, self.timesteps = examples, no_words, timesteps
        self.config, self.accelerator = config, accelerator
        self.micro_batch = config.train_batch_size * accelerator.num_processes
        self.order = Order(examples.buckets(), self.micro_batch, config.seed)

    @property
    def images_per_step(self) -> int:
        """The effective batch: over accumulation and processes."""
        return self.micro_batch * self.config.gradient_accumulation_steps

    def of_step(self, step: int) -> list[tuple[Tensor, ...]]:
        """The micro-batches of optimizer step `step`, counted from 0: latents, texts, noise, timesteps."""
        micros = range(self.config.gradient_accumulation_steps)
        return [self._batch(step * len(micros) + micro) for micro in micros]

    def names(self, step: int) -> list[list[str]]:
        """The images of each micro-batch of a step, over all processes."""
        count = self.config.gradient_accumulation_steps
        numbers = range(step * count, (step + 1) * count)
        return [[self.examples.names[i] for i in self.order.batch(n)] for n in numbers]

    def _batch(self, number: int) -> tuple[Tensor, ...]:
        config, size = self.config, self.config.train_batch_size
        mine = self.accelerator.process_index * size
        first = number * self.micro_batch + mine
        positions = range(first, first + size)
        picked = self.order.batch(number)[mine : mine + size]
        latents = torch.stack([self._latents(i, p) for i, p in zip(picked, positions, strict=True)])
        noise, times, chances = zip(
            *(draws_at(p, latents.shape[1:], self.timesteps, config.seed) for p in positions),
            strict=True,
        )
        texts = self.examples.texts[picked]
        dropped = torch.tensor(chances).view(-1, *[1] * (texts.ndim - 1)) < config.caption_dropout
        texts = torch.where(dropped, self.no_words, texts)
        tensors = (latents, texts, self._offset(torch.stack(noise), positions), torch.tensor(times))
        device = self.accelerator.device
        if device.type == "cuda":  # pinned memory is copied without a wait for the GPU
            tensors = tuple(tensor.pin_memory() for tensor in tensors)
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)

    def _latents(self, index: int, position: int) -> Tensor:
        variants = self.examples.variants(index)
        if len(variants) == 1:
            return variants[0]
        return variants[variant_at(position, len(variants), self.config.seed)]

    def _offset(self, noise: Tensor, positions: range) -> Tensor:
        """Noise offset (crosslabs.org, 2023): lets a model learn pictures that are dark or bright as a whole."""
        if self.config.noise_offset == 0:
            return noise
        draws = [
            draws_at(p, torch.Size((noise.shape[1], 1, 1)), 1, self.config.seed + 1)[0]
            for p in positions
        ]
        return noise + self.config.noise_offset * torch.stack(draws)
