"""The loss that is trained on, and the same loss at fixed noise that is watched."""

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from helpers.host.device import Device
from helpers.train.latents import Examples
from helpers.train.order import generator


def diffusion_loss(
    unet: nn.Module,
    schedule: DDPMScheduler,
    latents: Tensor,
    texts: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Mean squared error of each image on the schedule's target, Ho et al. 2020 eq. 14 (arXiv:2006.11239).

    latents, noise  (B, 4, h, w), latents scaled
    texts           (B, T, D), or (B, T) token ids where `unet` is model.TextAndUNet
    timesteps       (B,) int64
    returns         (B,) float32
    Raises ValueError for a prediction_type other than epsilon and v_prediction (Salimans and Ho 2022).
    """
    # Add noise (forward process)
    noisy = schedule.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, texts).sample
    # Get the target depending on the prediction type
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = schedule.get_velocity(latents, noise, timesteps)
    else:
        raise ValueError(f"prediction_type is {kind}: epsilon and v_prediction can be trained")
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights of timesteps (Hang et al. 2023, arXiv:2303.09556); all 1 for gamma 0.

    min(SNR, gamma) / SNR for epsilon, which is 1 at a zero terminal SNR, and min(SNR, gamma) / (SNR + 1) for v.
    """
    if gamma == 0:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(schedule, timesteps)
    if schedule.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def forward_backward(
    unet: nn.Module,
    accelerator: Accelerator,
    noise_scheduler: DDPMScheduler,
    snr_gamma: float,
    *batch: Tensor,
) -> Tensor:
    """Forward and backward pass of a micro-batch; its gradients are added to those that are there.

    batch    latents, texts, noise and timesteps, as `diffusion_loss` takes them
    returns  the unweighted loss of each image, (B,) float32
    It reads no value of a tensor, so that it can be captured.
    """
    with accelerator.autocast():
        losses = diffusion_loss(unet, noise_scheduler, *batch)
    timesteps = batch[-1]
    accelerator.backward((losses * snr_weights(noise_scheduler, timesteps, snr_gamma)).mean())
    return losses.detach()


class FixedLoss:
    """The unweighted loss on some examples, always with the same noise and timesteps.

    The timesteps are spread evenly over the schedule, so that two checkpoints differ by what they
    learnt and by nothing else. It touches no random state of training.
    """

    def __init__(
        self,
        examples: Examples,
        schedule: DDPMScheduler,
        seed: int,
        pairs: int,
        alike: bool = False,
    ) -> None:
        """`pairs` is how many (image, timestep) are measured; each image comes about equally often.

        Where there are more images than pairs, those that are measured are spread evenly over all.

        With `alike` every image has the same timesteps, so that images can be compared.
        """
        source = generator(seed, "fixed loss", len(examples))
        self.schedule, self.examples = schedule, examples
        count, numbers = len(examples), torch.arange(pairs)
        self.index = numbers * count // pairs if count > pairs else numbers % count
        steps = schedule.config.num_train_timesteps
        even = ((torch.arange(pairs) + 0.5) / pairs * steps).long()
        self.timesteps = even[torch.randperm(pairs, generator=source)]
        if alike:
            rounds = -(-pairs // len(examples))
            turn = torch.arange(pairs) // len(examples)
            self.timesteps = ((turn + 0.5) / rounds * steps).long()
        self.groups = self._of_one_shape()
        self.noise = [
            torch.randn(len(group), *examples.shape(int(self.index[group[0]])), generator=source)
            for group in self.groups
        ]

    def _of_one_shape(self) -> list[Tensor]:
        """The pairs, those whose images share a shape together."""
        label = {i: n for n, bucket in enumerate(self.examples.buckets()) for i in bucket}
        labels = torch.tensor([label[i] for i in self.index.tolist()])
        return [(labels == n).nonzero().flatten() for n in labels.unique()]

    def __call__(self, unet: nn.Module, device: Device) -> float:
        """The mean loss of the UNet as it is now."""
        return float(self.of_pairs(unet, device).mean())

    def of_images(self, unet: nn.Module, device: Device) -> list[float]:
        """The mean loss of each image."""
        sums, counts = torch.zeros(2, len(self.examples))
        sums.index_add_(0, self.index, self.of_pairs(unet, device))
        counts.index_add_(0, self.index, torch.ones(len(self.index)))
        return (sums / counts).tolist()

    @torch.compiler.set_stance("force_eager")  # a step's own shapes alone are worth compiling
    @torch.no_grad()
    def of_pairs(self, unet: nn.Module, device: Device, batch: int = 16) -> Tensor:
        """The loss of each pair (pairs,), on the CPU."""
        was_training, losses = unet.training, torch.empty(len(self.index))
        unet.eval()
        for group, noise in zip(self.groups, self.noise, strict=True):
            for start in range(0, len(group), batch):
                pairs = group[start : start + batch]
                tensors = self._batch(pairs, noise[start : start + batch], unet.device)
                with device.autocast():
                    losses[pairs] = diffusion_loss(unet, self.schedule, *tensors).cpu()
        unet.train(was_training)
        return losses

    def _batch(self, pairs: Tensor, noise: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        index = self.index[pairs].tolist()
        latents = torch.stack([self.examples.variants(i)[0] for i in index])
        tensors = (latents, self.examples.texts[index], noise, self.timesteps[pairs])
        return tuple(tensor.to(device) for tensor in tensors)
