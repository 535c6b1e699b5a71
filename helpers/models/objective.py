"""What a denoiser is trained to predict: how noise is added, the target, and the weight of each timestep's loss."""

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction")


class Objective(Protocol):
    """A training objective, such as the prediction of noise, of v, or of a flow's velocity."""

    num_timesteps: int  # timesteps are drawn from 0 to num_timesteps - 1

    def __str__(self) -> str:
        """Return all that makes it this objective, by which a checkpoint is resumed with no other."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return noisy latents (B, C, h, w) for timesteps (B,)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the denoiser should predict (B, C, h, w)."""
        ...

    def loss_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Return the loss weight of each timestep (B,); all 1 for gamma 0."""
        ...


@dataclass(frozen=True)
class Ddpm:
    """Noise or v prediction on a discrete noise schedule (Ho et al. 2020, arXiv:2006.11239; Salimans and Ho 2022)."""

    noise_scheduler: DDPMScheduler

    @property
    def num_timesteps(self) -> int:
        return self.noise_scheduler.config.num_train_timesteps

    def __str__(self) -> str:
        schedule = self.noise_scheduler
        return f"{schedule.config.prediction_type} {schedule.alphas_cumprod.tolist()}"

    @property
    def predicts_v(self) -> bool:
        """Whether the denoiser predicts v instead of the noise.

        Raises ValueError for a prediction_type other than epsilon and v_prediction.
        """
        kind = self.noise_scheduler.config.prediction_type
        if kind not in PREDICTIONS:
            raise ValueError(
                f"prediction_type is {kind}: {' and '.join(PREDICTIONS)} can be trained"
            )
        return kind == "v_prediction"

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents of the forward process (Ho et al. 2020, eq. 4)."""
        return self.noise_scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise, or v (Salimans and Ho 2022, arXiv:2202.00512)."""
        if self.predicts_v:
            return self.noise_scheduler.get_velocity(latents, noise, timesteps)
        return noise

    def loss_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Return the Min-SNR weight of each timestep (Hang et al. 2023, arXiv:2303.09556); all 1 for gamma 0.

        min(SNR, gamma) / SNR for epsilon, which is 1 at a zero terminal SNR, and min(SNR, gamma) / (SNR + 1) for v.
        """
        if gamma == 0:
            return torch.ones(len(timesteps), device=timesteps.device)
        snr = compute_snr(self.noise_scheduler, timesteps)
        if self.predicts_v:
            return snr.clamp(max=gamma) / (snr + 1)
        return (gamma / snr).clamp(max=1)
