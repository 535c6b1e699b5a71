"""The training loss: noise added, noise predicted, their difference weighted, and its gradients."""

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor, nn


def diffusion_loss(
    unet: nn.Module,
    noise_scheduler: DDPMScheduler,
    latents: Tensor,
    texts: Tensor,
    noise: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Return the mean squared error of each image's predicted noise or v (Ho et al. 2020 eq. 14, arXiv:2006.11239).

    latents, noise  (B, 4, h, w), latents scaled
    texts           (B, T, D), or (B, T) token ids where `unet` is model.TextAndUNet
    timesteps       (B,) int64
    returns         (B,) float32
    Raises ValueError for a prediction_type other than epsilon and v_prediction (Salimans and Ho 2022).
    """
    # Add noise (forward process)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, texts).sample
    # Get the target depending on the prediction type
    kind = noise_scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    else:
        raise ValueError(f"prediction_type is {kind}: epsilon and v_prediction can be trained")
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def snr_weights(noise_scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Return the Min-SNR loss weight of each timestep (Hang et al. 2023, arXiv:2303.09556); all 1 for gamma 0.

    min(SNR, gamma) / SNR for epsilon, which is 1 at a zero terminal SNR, and min(SNR, gamma) / (SNR + 1) for v.
    """
    if gamma == 0:
        return torch.ones(len(timesteps), device=timesteps.device)
    snr = compute_snr(noise_scheduler, timesteps)
    if noise_scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def forward_backward(
    unet: nn.Module,
    accelerator: Accelerator,
    noise_scheduler: DDPMScheduler,
    snr_gamma: float,
    *batch: Tensor,
) -> Tensor:
    """Run a micro-batch's forward and backward pass, adding to the gradients of earlier micro-batches.

    batch    latents, texts, noise and timesteps, as `diffusion_loss` takes them
    returns  the unweighted loss of each image, (B,) float32
    A CUDA graph can capture this function, since it reads no tensor's value in Python.
    """
    with accelerator.autocast():
        losses = diffusion_loss(unet, noise_scheduler, *batch)
    weights = snr_weights(noise_scheduler, batch[-1], snr_gamma)  # of its timesteps
    # accelerate divides by gradient_accumulation_steps, and averages over processes
    accelerator.backward((losses * weights).mean())
    return losses.detach()
