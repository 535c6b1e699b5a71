"""The loss that is trained on, and the same loss at fixed noise that is watched."""

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor

from helpers.device import Device
from helpers.train.cache import Examples
from helpers.train.order import generator


def diffusion_loss(
    unet: UNet2DConditionModel,
    schedule: DDPMScheduler,
    latents: Tensor,
    texts: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Mean squared error of each image on the schedule's target, Ho et al. 2020 eq. 14 (arXiv:2006.11239).

    latents, noise  (B, 4, h, w), latents scaled
    texts           (B, T, D)
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
    """Min-SNR weights of timesteps (Hang et al. 2023, arXiv:2303.09556); all 1 for gamma 0."""
    if gamma == 0:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(schedule, timesteps)
    divisor = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
    return snr.clamp(max=gamma) / divisor


class FixedLoss:
    """The unweighted loss on some examples, always with the same noise and timesteps.

    The timesteps are spread evenly over the schedule, so that two checkpoints differ by what they
    learnt and by nothing else. It touches no random state of training.
    """

    def __init__(
        self, examples: Examples, schedule: DDPMScheduler, seed: int, pairs: int = 128
    ) -> None:
        """`pairs` is how many (image, timestep) are measured; each image comes about equally often."""
        source = generator(seed, "fixed loss", len(examples))
        self.schedule = schedule
        self.index = torch.arange(pairs) % len(examples)
        steps = schedule.config.num_train_timesteps
        even = ((torch.arange(pairs) + 0.5) / pairs * steps).long()
        self.timesteps = even[torch.randperm(pairs, generator=source)]
        self.noise = torch.randn(pairs, *examples.latents.shape[1:], generator=source)
        self.examples = examples

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel, device: Device, batch: int = 16) -> float:
        """The mean loss of the UNet as it is now."""
        was_training = unet.training
        unet.eval()
        losses = []
        for picked in torch.arange(len(self.index)).split(batch):
            with device.autocast():
                losses.append(
                    diffusion_loss(unet, self.schedule, *self._batch(picked, unet.device))
                )
        unet.train(was_training)
        return float(torch.cat(losses).mean())

    def _batch(self, picked: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        index = self.index[picked]
        tensors = (
            self.examples.latents[index],
            self.examples.texts[index],
            self.noise[picked],
            self.timesteps[picked],
        )
        return tuple(tensor.to(device) for tensor in tensors)
