"""The validation loss: the training loss on held-out images at fixed noise and timesteps."""

import math

import torch
from torch import Tensor

from helpers.host.device import Device
from helpers.models.objective import Objective
from helpers.train.data import LatentDataset, generator
from helpers.train.loss import diffusion_loss
from helpers.train.model import Denoiser

MAX_LATENT_PIXELS = 8 * 64**2  # of a batch: eight images of 512 px, two of 1024


class ValidationLoss:
    """The unweighted loss on a dataset, always with the same images, noise and evenly spread timesteps."""

    def __init__(
        self,
        dataset: LatentDataset,
        objective: Objective,
        seed: int,
        num_eval_samples: int,
        same_timesteps: bool = False,
    ) -> None:
        source = generator(seed, "fixed loss", len(dataset))
        self.objective, self.dataset = objective, dataset
        count, total = len(dataset), num_eval_samples
        numbers, order = torch.arange(total), torch.randperm(total, generator=source)
        # spread evenly over the images
        self.images = numbers * count // total if count > total else numbers % count
        places = ((numbers + 0.5) / total)[order]
        if same_timesteps:
            # the same for all images, so that they can be compared
            places = (numbers // count + 0.5) / math.ceil(total / count)
        self.timesteps = (places * objective.num_timesteps).long()
        self.groups = self._group_by_shape()
        self.noise = [
            torch.randn(len(group), *dataset.shape(int(self.images[group[0]])), generator=source)
            for group in self.groups
        ]

    def _group_by_shape(self) -> list[Tensor]:
        label = {i: n for n, bucket in enumerate(self.dataset.buckets()) for i in bucket}
        labels = torch.tensor([label[i] for i in self.images.tolist()])
        return [(labels == n).nonzero().flatten() for n in labels.unique()]

    def __call__(self, model: Denoiser, device: Device) -> float:
        """Return the model's mean loss over all (image, timestep) pairs."""
        return float(self.per_pair(model, device).mean())

    def per_image(self, model: Denoiser, device: Device) -> list[float]:
        """Return the mean loss of each image in the dataset, or NaN for an image that is not measured."""
        sums, counts = torch.zeros(2, len(self.dataset))
        sums.index_add_(0, self.images, self.per_pair(model, device))
        counts.index_add_(0, self.images, torch.ones(len(self.images)))
        return (sums / counts).tolist()

    # only a training step's own shapes are worth compiling
    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def per_pair(self, model: Denoiser, device: Device, batch: int = 16) -> Tensor:
        """Return the loss of each (image, timestep) pair, as a CPU tensor (num_eval_samples,)."""
        was_training, losses = model.training, torch.empty(len(self.images))
        model.eval()
        for group, noise in zip(self.groups, self.noise, strict=True):
            together = max(1, min(batch, MAX_LATENT_PIXELS // noise[0][0].numel()))
            for start in range(0, len(group), together):
                pairs = group[start : start + together]
                tensors = self._batch(pairs, noise[start : start + together], model.device)
                with device.autocast():
                    losses[pairs] = diffusion_loss(model, self.objective, **tensors).cpu()
        model.train(was_training)
        return losses

    def _batch(self, pairs: Tensor, noise: Tensor, device: torch.device) -> dict[str, Tensor]:
        images = self.images[pairs].tolist()
        latents = torch.stack([self.dataset.augmentations(i)[0] for i in images])
        batch = {"latents": latents, "noise": noise, "timesteps": self.timesteps[pairs]}
        batch |= self.dataset.conditioning(images, [0] * len(images))
        return {name: tensor.to(device) for name, tensor in batch.items()}
