"""The validation loss: the training loss on held-out images at fixed noise and timesteps."""

import math

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from helpers.host.device import Device
from helpers.train.data import LatentDataset, generator
from helpers.train.loss import diffusion_loss


class ValidationLoss:
    """The unweighted loss on a dataset, always with the same images, noise and evenly spread timesteps."""

    def __init__(
        self,
        dataset: LatentDataset,
        noise_scheduler: DDPMScheduler,
        seed: int,
        num_eval_samples: int,
        same_timesteps: bool = False,
    ) -> None:
        """Choose `num_eval_samples` fixed (image, timestep) pairs, and their noise, by `seed`.

        The images are spread evenly. With `same_timesteps` all have the same timesteps, so that they can be compared.
        """
        source = generator(seed, "fixed loss", len(dataset))
        self.noise_scheduler, self.dataset = noise_scheduler, dataset
        count, total = len(dataset), num_eval_samples
        numbers, order = torch.arange(total), torch.randperm(total, generator=source)
        self.images = numbers * count // total if count > total else numbers % count
        places = ((numbers + 0.5) / total)[order]
        if same_timesteps:
            places = (numbers // count + 0.5) / math.ceil(total / count)
        self.timesteps = (places * noise_scheduler.config.num_train_timesteps).long()
        self.groups = self._group_by_shape()
        self.noise = [
            torch.randn(len(group), *dataset.shape(int(self.images[group[0]])), generator=source)
            for group in self.groups
        ]

    def _group_by_shape(self) -> list[Tensor]:
        """Return the indices of the (image, timestep) pairs, grouped by the shape of the latents."""
        label = {i: n for n, bucket in enumerate(self.dataset.buckets()) for i in bucket}
        labels = torch.tensor([label[i] for i in self.images.tolist()])
        return [(labels == n).nonzero().flatten() for n in labels.unique()]

    def __call__(self, unet: nn.Module, device: Device) -> float:
        """Return the UNet's mean loss over all (image, timestep) pairs."""
        return float(self.per_pair(unet, device).mean())

    def per_image(self, unet: nn.Module, device: Device) -> list[float]:
        """Return the mean loss of each image in the dataset, or NaN for an image that is not measured."""
        sums, counts = torch.zeros(2, len(self.dataset))
        sums.index_add_(0, self.images, self.per_pair(unet, device))
        counts.index_add_(0, self.images, torch.ones(len(self.images)))
        return (sums / counts).tolist()

    # only a training step's own shapes are worth compiling
    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def per_pair(self, unet: nn.Module, device: Device, batch: int = 16) -> Tensor:
        """Return the loss of each (image, timestep) pair, as a CPU tensor (num_eval_samples,)."""
        was_training, losses = unet.training, torch.empty(len(self.images))
        unet.eval()
        for group, noise in zip(self.groups, self.noise, strict=True):
            for start in range(0, len(group), batch):
                pairs = group[start : start + batch]
                tensors = self._batch(pairs, noise[start : start + batch], unet.device)
                with device.autocast():
                    losses[pairs] = diffusion_loss(unet, self.noise_scheduler, *tensors).cpu()
        unet.train(was_training)
        return losses

    def _batch(self, pairs: Tensor, noise: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        images = self.images[pairs].tolist()
        latents = torch.stack([self.dataset.augmentations(i)[0] for i in images])
        tensors = (latents, self.dataset.texts[images], noise, self.timesteps[pairs])
        return tuple(tensor.to(device) for tensor in tensors)
