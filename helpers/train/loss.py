"""The training loss and its gradients. The loss is the weighted error of the noise that the UNet predicts."""

from accelerate import Accelerator
from torch import Tensor, nn

from helpers.models.objective import Objective


def diffusion_loss(
    model: nn.Module,
    objective: Objective,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    **conditioning: Tensor,
) -> Tensor:
    """Return each image's mean squared error of predicted noise or velocity (Ho et al. 2020 eq. 14, arXiv:2006.11239).

    model           a model.Denoiser
    latents, noise  (B, 4, h, w), latents scaled
    timesteps       (B,) int64
    conditioning    text embeddings (B, T, D) as `encoder_hidden_states`, or token ids; and what its family adds
    returns         (B,) float32
    """
    # Add noise (forward process)
    noisy = objective.add_noise(latents, noise, timesteps)
    predicted = model(noisy, timesteps, conditioning)
    # Get the target depending on the prediction type
    target = objective.target(latents, noise, timesteps)
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def forward_backward(
    model: nn.Module,
    accelerator: Accelerator,
    objective: Objective,
    snr_gamma: float,
    **batch: Tensor,
) -> Tensor:
    """Run a micro-batch's forward and backward pass, and add the gradients to those of earlier micro-batches.

    batch    latents, noise, timesteps and conditioning, as `diffusion_loss` takes them
    returns  the unweighted loss of each image, (B,) float32
    A CUDA graph can capture this function, since it reads no tensor's value in Python.
    """
    with accelerator.autocast():
        losses = diffusion_loss(model, objective, **batch)
    weights = objective.loss_weights(batch["timesteps"], snr_gamma)
    # accelerate divides by gradient_accumulation_steps, and averages over processes
    accelerator.backward((losses * weights).mean())
    return losses.detach()
