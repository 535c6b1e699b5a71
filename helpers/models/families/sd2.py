"""Stable Diffusion 2 (Stability AI 2022): version 1 with OpenCLIP's text encoder and linear projections."""

from collections.abc import Mapping
from typing import Any

from helpers.models.families import Settings, State
from helpers.models.families.sd1 import (  # noqa: F401
    CONTROLNET,
    DENOISER,
    IMAGE_TO_IMAGE,
    INPAINTING,
    LORA_TARGETS,
    NO_SAFETY_CHECKER,
    PIPELINE,
    PIPELINE_OPTIONS,
    PROMPT_EMBEDDINGS,
    SAMPLER,
    SCHEDULER,
    TEXT_EMBEDDINGS,
    TEXT_ENCODERS,
    TEXT_SETTINGS,
    TEXT_TARGETS,
    TOKENIZERS,
    VARIANT,
    check,
    encode_image,
    encode_text,
    example_conditioning,
    is_stable_diffusion,
    objective,
    predict,
    size_conditioning,
    to_kohya,
    tokenize,
    vae_dtype,
)
from helpers.models.original_names import (
    text_encoder_to_openclip,
    unet_to_original,
    vae_to_original,
)

NAME = "Stable Diffusion 2"
ORIGINAL_TEXT = {
    "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
    "params": {"freeze": True, "layer": "penultimate"},
}
DEFAULT_RESOLUTION = 768
LICENCE = "openrail++"


def recognises(settings: Settings) -> bool:
    """Return True for a StableDiffusionPipeline whose UNet has linear projections."""
    return is_stable_diffusion(settings) and bool(settings["unet"].get("use_linear_projection"))


def architecture(schedule: dict[str, Any]) -> tuple[str, str]:
    """Return the names of modelspec and sd-scripts, which tell v-prediction."""
    if schedule.get("prediction_type") == "v_prediction":
        return "stable-diffusion-v2-768-v", "sd_v2_v"
    return "stable-diffusion-v2-512", "sd_v2"


def to_original(states: Mapping[str, State], settings: Settings) -> State:
    """Return all weights by the names of Stability's checkpoints."""
    return (
        unet_to_original(states["unet"], settings["unet"])
        | vae_to_original(states["vae"], settings["vae"])
        | text_encoder_to_openclip(states["text_encoder"])
    )
