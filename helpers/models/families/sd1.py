"""Stable Diffusion 1 (Rombach et al. 2022, arXiv:2112.10752)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from helpers.models.families import Conditioning, Settings, Size, State, text_config
from helpers.models.objective import PREDICTIONS, Ddpm
from helpers.models.original_names import (
    text_encoder_to_original,
    unet_to_original,
    vae_to_original,
)

NAME = "Stable Diffusion 1"
PIPELINE = StableDiffusionPipeline
IMAGE_TO_IMAGE, INPAINTING = StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
CONTROLNET = StableDiffusionControlNetPipeline
PIPELINE_OPTIONS: dict[str, Any] = {}
TEXT_SETTINGS: tuple[str, ...] = ()
NO_SAFETY_CHECKER = {  # a safety checker would take another gigabyte
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
SCHEDULER, SAMPLER = DDPMScheduler, DPMSolverMultistepScheduler
DENOISER = "unet", UNet2DConditionModel
TEXT_ENCODERS = {"text_encoder": CLIPTextModel}
TOKENIZERS = ("tokenizer",)
VARIANT = ""
TEXT_EMBEDDINGS = ("encoder_hidden_states",)
PROMPT_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention_ff": [*ATTENTION, *FEED_FORWARD],
    "attention_ff_conv": [*ATTENTION, *FEED_FORWARD, "conv1", "conv2"],
}
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]  # as in diffusers' LoRA training scripts
ORIGINAL_TEXT = {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"}
DEFAULT_RESOLUTION = 512
LICENCE = "creativeml-openrail-m"


def recognises(settings: Settings) -> bool:
    """Return True for a StableDiffusionPipeline whose UNet has convolutions as projections."""
    return is_stable_diffusion(settings) and not settings["unet"].get("use_linear_projection")


def is_stable_diffusion(settings: Settings) -> bool:
    """Return True for a StableDiffusionPipeline with a UNet."""
    return settings["model_index"].get("_class_name") == PIPELINE.__name__ and "unet" in settings


def check(settings: Settings) -> None:
    """Raise ValueError if the noise schedule cannot be trained, or the UNet takes other inputs than the text."""
    check_schedule(settings)
    width, unet = text_config(settings)["hidden_size"], settings["unet"]
    if (takes := unet.get("cross_attention_dim", 1280)) != width:
        raise ValueError(
            f"unet/config.json has cross_attention_dim {takes} and text_encoder/config.json hidden_size {width}: "
            "they belong to different models"
        )
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(name) is not None:
            raise ValueError(
                f"unet/config.json has {name}, an input that a text prompt cannot fill"
            )


def check_schedule(settings: Settings) -> None:
    """Raise ValueError if the noise schedule is not finite, or its prediction type is neither epsilon nor v."""
    if "FlowMatch" in (name := settings["model_index"]["scheduler"][1]):
        raise ValueError(f"model_index.json names {name}, which cannot be trained")
    schedule = DDPMScheduler.from_config(settings["scheduler"])
    if (kind := schedule.config.prediction_type) not in PREDICTIONS:
        raise ValueError(
            f"scheduler/scheduler_config.json has prediction_type {kind!r}: {' and '.join(PREDICTIONS)} can be trained"
        )
    if not schedule.alphas_cumprod.isfinite().all():
        raise ValueError(
            "scheduler/scheduler_config.json has betas that give no finite noise schedule"
        )


def vae_dtype(_vae: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`: the VAE works in any."""
    return dtype


def tokenize(tokenizers: Sequence[CLIPTokenizer], texts: Sequence[str]) -> Conditioning:
    """Return token ids (N, T), padded and truncated to the text encoder's length."""
    given = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = [tokenizer(list(texts), **given).input_ids for tokenizer in tokenizers]
    names = ["input_ids", *(f"input_ids_{n}" for n in range(2, len(ids) + 1))]
    return dict(zip(names, ids, strict=True))


def encode_text(
    encoders: Sequence[nn.Module], ids: Conditioning, _index: dict[str, Any]
) -> Conditioning:
    """Return the text encoder's last hidden state (N, T, D)."""
    return {"encoder_hidden_states": encoders[0](ids["input_ids"]).last_hidden_state}


def size_conditioning(_original: Size, _crop: Size, _target: Size) -> Conditioning:
    """Return {}: the UNet knows no sizes."""
    return {}


def predict(
    denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> Tensor:
    """Return the UNet's output for noisy latents (B, 4, h, w), timesteps (B,) and text (B, T, D)."""
    return denoiser(noisy, timesteps, conditioning["encoder_hidden_states"]).sample


def example_conditioning(denoiser: nn.Module, batch: int) -> Conditioning:
    """Return random text embeddings (batch, 77, D)."""
    return {"encoder_hidden_states": torch.randn(batch, 77, denoiser.config.cross_attention_dim)}


def encode_image(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Return the mean of the VAE's distribution, scaled, for pixels (N, 3, height, width) in -1..1."""
    return vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor


def objective(noise_scheduler: DDPMScheduler) -> Ddpm:
    """Return the prediction of noise or v, as the scheduler's prediction_type says."""
    return Ddpm(noise_scheduler)


def architecture(_schedule: dict[str, Any]) -> tuple[str, str]:
    """Return the names of modelspec and sd-scripts."""
    return "stable-diffusion-v1", "sd_v1"


def to_original(states: Mapping[str, State], settings: Settings) -> State:
    """Return all weights by the names of CompVis' checkpoints."""
    text, positions = states["text_encoder"], text_config(settings)["max_position_embeddings"]
    return (
        unet_to_original(states["unet"], settings["unet"])
        | vae_to_original(states["vae"], settings["vae"])
        | text_encoder_to_original(text, positions)
    )


def to_kohya(layer: str, _settings: Settings) -> tuple[str, ...]:
    """Return a LoRA layer's name in sd-scripts, such as `lora_unet_mid_block_attentions_0_proj_in`."""
    layer = layer.replace("text_encoder.", "lora_te.", 1).replace("unet.", "lora_unet.", 1)
    return (layer.replace(".", "_"),)
