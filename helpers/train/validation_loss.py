"""The validation loss: the training loss on held-out images at fixed noise and timesteps."""

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from helpers.host.device import Device
from helpers.train.data import LatentDataset, generator
from helpers.train.loss import diffusion_loss


class ValidationLoss:
    """Computes the unweighted loss on a dataset, always with the same images, noise and timesteps.

    The timesteps are spread evenly over the schedule, so two checkpoints differ by what they learned
    and by nothing else. It leaves the random state of training alone.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        noise_scheduler: DDPMScheduler,
        seed: int,
        num_eval_samples: int,
        same_timesteps: bool = False,
    ) -> None:
        """Choose `num_eval_samples` fixed (image, timestep) pairs, and their noise, by `seed`.

        Each image comes about equally often. With more images than pairs, the images that are measured are spread
        evenly over all. With `same_timesteps` every image has the same timesteps, so that images can be compared.
        """
        source = generator(seed, "fixed loss", len(dataset))
        self.noise_scheduler, self.dataset = noise_scheduler, dataset
        count, numbers = len(dataset), torch.arange(num_eval_samples)
        self.images = (
            numbers * count // num_eval_samples if count > num_eval_samples else numbers % count
        )
        num_timesteps = noise_scheduler.config.num_train_timesteps
        order = torch.randperm(num_eval_samples, generator=source)
        self.timesteps = ((numbers + 0.5) / num_eval_samples * num_timesteps).long()[order]
        if same_timesteps:
            rounds = -(-num_eval_samples // count)
            self.timesteps = ((numbers // count + 0.5) / rounds * num_timesteps).long()
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
        """Return the mean loss of each image in the dataset, NaN for images that are not measured."""
        sums, counts = torch.zeros(2, len(self.dataset))
        sums.index_add_(0, self.images, self.per_pair(unet, device))
        counts.index_add_(0, self.images, torch.ones(len(self.images)))
        return (sums / counts).tolist()

    @torch.compiler.set_stance(
        "force_eager"
    )  # only a training step's own shapes are worth compiling
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
