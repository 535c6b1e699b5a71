"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from helpers.models.families import Conditioning, Settings, Size, State, text_config
from helpers.models.families.sd1 import (  # noqa: F401
    DENOISER,
    LORA_TARGETS,
    SAMPLER,
    SCHEDULER,
    TEXT_TARGETS,
    check_schedule,
    encode_image,
    objective,
    tokenize,
)
from helpers.models.original_names import (
    openclip_names,
    text_model_names,
    unet_name,
    unet_to_original,
    vae_to_original,
)

NAME = "SDXL"
PIPELINE = StableDiffusionXLPipeline
IMAGE_TO_IMAGE, INPAINTING = StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
CONTROLNET = StableDiffusionXLControlNetPipeline
PIPELINE_OPTIONS = {"add_watermarker": False}
TEXT_SETTINGS = ("force_zeros_for_empty_prompt",)
NO_SAFETY_CHECKER: dict[str, Any] = {}  # it has none
TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
TOKENIZERS = ("tokenizer", "tokenizer_2")
VARIANT = "fp16"  # 6.9 GB in place of 13.9, and only a LoRA is trained on it
TEXT_EMBEDDINGS = ("encoder_hidden_states", "text_embeds")
PROMPT_EMBEDDINGS = (
    *("prompt_embeds", "negative_prompt_embeds"),
    *("pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
)
ORIGINAL_TEXT = None
DEFAULT_RESOLUTION = 1024
LICENCE = "openrail++"
TIME_IDS = 6  # original height and width, crop top and left, target height and width


def recognises(settings: Settings) -> bool:
    """Return True for a StableDiffusionXLPipeline."""
    return settings["model_index"].get("_class_name") == PIPELINE.__name__


def check(settings: Settings) -> None:
    """Raise ValueError for a refiner, or if the UNet takes text embeddings or sizes of another shape."""
    check_schedule(settings)
    unet = settings["unet"]
    missing = [name for name in TEXT_ENCODERS if name not in settings]
    if missing:
        raise ValueError(f"it lacks {missing[0]}: SDXL's base has two, a refiner cannot be trained")
    for name, kind in TEXT_ENCODERS.items():
        if (named := settings["model_index"][name][1]) != kind.__name__:
            raise ValueError(
                f"model_index.json has a {named} as {name}: SDXL's is a {kind.__name__}"
            )
    first, second = (text_config(settings, name) for name in TEXT_ENCODERS)
    width, pooled = first["hidden_size"] + second["hidden_size"], second["projection_dim"]
    if (takes := unet.get("cross_attention_dim")) != width:
        raise ValueError(
            f"unet/config.json has cross_attention_dim {takes} and both text encoders together {width}: "
            "they belong to different models"
        )
    takes = unet.get("projection_class_embeddings_input_dim")
    has_sizes = unet.get("addition_embed_type") == "text_time"
    if not has_sizes or takes != pooled + TIME_IDS * unet["addition_time_embed_dim"]:
        raise ValueError(
            "unet/config.json does not take the pooled text and the six sizes of SDXL's base: "
            "a refiner, or another model, cannot be trained"
        )


def vae_dtype(vae: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """Return float32 in place of float16, in which SDXL's VAE overflows unless its settings say that it does not."""
    overflows = dtype == torch.float16 and vae.get("force_upcast", True)
    return torch.float32 if overflows else dtype


def encode_text(
    encoders: Sequence[nn.Module], ids: Conditioning, index: dict[str, Any]
) -> Conditioning:
    """Return both encoders' last hidden states but one, side by side (N, T, D), and the second's pooled text (N, P).

    An empty text is all zeros if the base's force_zeros_for_empty_prompt says so, as its pipeline does where it has no
    negative prompt.
    """
    encoded = [
        encoder(tokens, output_hidden_states=True)
        for encoder, tokens in zip(encoders, ids.values(), strict=True)
    ]
    states = torch.cat([one.hidden_states[-2] for one in encoded], dim=-1)
    pooled = encoded[-1].text_embeds
    if index.get("force_zeros_for_empty_prompt", True):
        has_words = ~_is_empty(ids["input_ids"], encoders[0].config.eos_token_id)
        states, pooled = states * has_words[:, None, None], pooled * has_words[:, None]
    return {"encoder_hidden_states": states, "text_embeds": pooled}


def _is_empty(ids: Tensor, eos_token_id: int) -> Tensor:
    """Return whether the end token follows the begin token, for each text (N,)."""
    # configs of 2022 say 2, which transformers takes for "the largest id" as well
    ends = ids.argmax(-1) if eos_token_id == 2 else (ids == eos_token_id).int().argmax(-1)
    return ends == 1


def size_conditioning(original: Size, crop: Size, target: Size) -> Conditioning:
    """Return the six numbers `time_ids` (1, 6) in float32: in half precision 3021 would be 3020 or 3024."""
    return {"time_ids": torch.tensor([[*original, *crop, *target]], dtype=torch.float32)}


def predict(
    denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> Tensor:
    """Return the UNet's output for noisy latents (B, 4, h, w), timesteps (B,), text and sizes."""
    added = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
    states = conditioning["encoder_hidden_states"]
    return denoiser(noisy, timesteps, states, added_cond_kwargs=added).sample


def example_conditioning(denoiser: nn.Module, batch: int) -> Conditioning:
    """Return random text embeddings (batch, 77, D) and pooled text (batch, P), and sizes of 1024 px."""
    config = denoiser.config
    pooled = (
        config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
    )
    return {
        "encoder_hidden_states": torch.randn(batch, 77, config.cross_attention_dim),
        "text_embeds": torch.randn(batch, pooled),
        "time_ids": torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]]).repeat(batch, 1),
    }


def architecture(_schedule: dict[str, Any]) -> tuple[str, str]:
    """Return the names of modelspec and sd-scripts."""
    return "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"


def to_original(states: Mapping[str, State], settings: Settings) -> State:
    """Return all weights by their names in sd_xl_base_1.0.safetensors."""
    first = text_model_names(states["text_encoder"])
    second = openclip_names(states["text_encoder_2"])
    return (
        unet_to_original(states["unet"], settings["unet"])
        | vae_to_original(states["vae"], settings["vae"])
        | {f"conditioner.embedders.0.transformer.{name}": t for name, t in first.items()}
        | {f"conditioner.embedders.1.model.{name}": t for name, t in second.items()}
    )


def to_kohya(layer: str, settings: Settings) -> tuple[str, ...]:
    """Return a LoRA layer's names in sd-scripts: the UNet's as in the original, and as in diffusers.

    lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q, lora_te2_text_model_encoder_layers_0_mlp_fc1
    """
    component, _, module = layer.partition(".")
    if component == "unet":
        original = unet_name(f"{module}.weight", settings["unet"]).removesuffix(".weight")
        return tuple(f"lora_unet_{name}".replace(".", "_") for name in (original, module))
    number = re.sub(r"\D", "", component) or "1"
    return (f"lora_te{number}_{module}".replace(".", "_"),)
