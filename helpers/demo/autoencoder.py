"""Train the tiny base model's autoencoder (VAE), between images of 128 px and latents (4, 32, 32)."""

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from tqdm import tqdm

from helpers.demo.optimise import draw_scenes, optimise, to_model
from helpers.demo.paint import SIZE_PX
from helpers.demo.scenes import AUTOENCODER_SCENES_FROM

SCALING_FACTOR = 0.18215  # Stable Diffusion v1's; the latents are normalised to it
LATENT_JITTER = 0.05  # standard deviation of the posterior, relative to the latents'


def train_autoencoder(seed: int, steps: int, scenes: int) -> AutoencoderKL:
    """Train an autoencoder on `scenes` images in each of the two styles, and normalise its latents."""
    torch.manual_seed(seed)
    seeds = range(AUTOENCODER_SCENES_FROM, AUTOENCODER_SCENES_FROM + scenes)
    pixels = torch.cat([draw_scenes("flat", seeds), draw_scenes("watercolour", seeds)])
    vae = new_autoencoder().train()
    start_as_pyramid(vae)
    optimise([vae], _losses(vae, pixels, steps), steps, 7e-4, 0.997, "autoencoder")
    normalise_latents(vae.eval(), to_model(pixels[:: len(pixels) // 200]))
    return vae


def new_autoencoder() -> AutoencoderKL:
    """Build an untrained AutoencoderKL that downsamples by 4, where Stable Diffusion's does by 8."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIZE_PX,
        scaling_factor=SCALING_FACTOR,
    ).to(memory_format=torch.channels_last)


@torch.no_grad()
def start_as_pyramid(vae: AutoencoderKL) -> None:
    """Initialise the VAE as an image pyramid: averaging down, interpolation up, zeros in the residual blocks.

    The first six channels are red, green and blue with both signs, since silu(x) - silu(-x) = x. From a random
    initialisation, half of the training is spent on learning to copy colours.
    """
    mean, tent = torch.zeros(3, 3), torch.tensor([1.0, 2.0, 1.0]) / 4
    mean[:2, :2] = 0.25
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _set_sum(module.conv_shortcut, torch.ones(1, 1), {i: {i: 1} for i in range(6)})
        elif isinstance(module, Downsample2D):
            _set_sum(module.conv, mean, {i: {i: 1} for i in range(6)})
        elif isinstance(module, Upsample2D):
            _set_sum(module.conv, tent[:, None] * tent, {i: {i: 1} for i in range(6)})
    for part in (vae.encoder, vae.decoder):
        centre = torch.zeros(3, 3)
        centre[1, 1] = 1
        _set_sum(part.conv_in, centre, {i: {i % 3: 1 if i < 3 else -1} for i in range(6)})
        _set_sum(part.conv_out, centre, {i: {i: 1, i + 3: -1} for i in range(3)})
    for conv in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)


def _set_sum(conv: nn.Conv2d, kernel: Tensor, gains: dict[int, dict[int, float]]) -> None:
    """Make an output channel a sum of input channels, weighted by `gains[output][input]`, convolved with `kernel`."""
    for out, sources in gains.items():
        conv.weight[out] = 0
        conv.bias[out] = 0
        for source, gain in sources.items():
            conv.weight[out, source] = gain * kernel


def _losses(vae: AutoencoderKL, pixels: Tensor, steps: int) -> Iterator[Tensor]:
    """Yield the loss of each step, on 48 px crops and, in the last quarter of the steps, on full images."""
    for step in itertools.count():
        # full images at the end, since group norm depends on the image size
        side_px, batch = (SIZE_PX, 1) if step >= steps * 0.75 else (48, 4)
        top, left = torch.randint(0, SIZE_PX - side_px + 1, (2,)).tolist()
        picked = pixels[torch.randint(0, len(pixels), (batch,))]
        crop = to_model(picked[:, :, top : top + side_px, left : left + side_px])
        latents = vae.encode(crop).latent_dist.mean
        jitter = LATENT_JITTER * latents.detach().std() * torch.randn_like(latents)
        loss = reconstruction_loss(vae.decode(latents + jitter).sample, crop)
        yield loss + 1e-4 * latents.square().mean()


def reconstruction_loss(out: Tensor, target: Tensor) -> Tensor:
    """Return a weighted sum of the squared error and several L1 errors between images."""
    error = out - target
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) * 0.3
    chroma = (error[:, :2] - error[:, 1:]).abs().mean()  # L1 of pixels alone loses hues
    pixels, coarse = error.abs().mean(), F.avg_pool2d(error, 4).abs().mean()
    return pixels + edges + chroma + coarse + 0.5 * error.square().mean()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Normalise scaled latents to mean 0 and standard deviation 1, by changing the 1x1 convolutions.

    The noise schedule expects them so; reconstructions do not change. The posterior's standard deviation, which is not
    learnt, becomes LATENT_JITTER.
    """
    latents = vae.encode(pixels).latent_dist.mean
    mean = latents.mean((0, 2, 3))
    gain = 1 / (latents.std((0, 2, 3)) * SCALING_FACTOR)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight /= gain.view(1, -1, 1, 1)
    inward.weight[:4] *= gain.view(-1, 1, 1, 1)
    inward.bias[:4] = (inward.bias[:4] - mean) * gain
    inward.weight[4:] = 0
    inward.bias[4:] = 2 * math.log(LATENT_JITTER / SCALING_FACTOR)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode uint8 images (N, 3, 128, 128) to scaled latents (N, 4, 32, 32)."""
    batches = tqdm(pixels.split(50), "encode", mininterval=10)
    latents = [vae.encode(to_model(batch)).latent_dist.mean for batch in batches]
    return torch.cat(latents) * SCALING_FACTOR
