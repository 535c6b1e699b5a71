"""Configs of Stable Diffusion 1, 2 and XL, and the renaming of their original weights for diffusers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from helpers.core.files import read_json

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = "cond_stage_model.model."  # Stable Diffusion 2's text encoder
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
SCHEDULE = {  # of all versions
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
V1_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
V2_UNET = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "upcast_attention": True,  # as 2.1 wants it in half precision, and 2.0 does not mind
    "sample_size": 64,
}
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE_SHAPE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
XL_VAE = VAE_SHAPE | {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
V1_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,  # as the hub's copy has it; transformers takes this for CLIP's own
    "eos_token_id": 2,
}
V2_TEXT = V1_TEXT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # all but the last, as Stable Diffusion 2 was trained
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
XL_TEXT = V1_TEXT | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
IN_BOTH = {  # of model_index.json
    "_diffusers_version": "0.37.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
INDEX = IN_BOTH | {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
XL_INDEX = IN_BOTH | {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


@dataclass(frozen=True)
class Text:
    """A text encoder: its class, its config, and how its weights' names begin in one file."""

    kind: type[CLIPTextModel]
    config: dict[str, Any]
    prefix: str

    @property
    def is_open_clip(self) -> bool:
        return self.prefix in (OPEN_CLIP, XL_OPEN_CLIP)


@dataclass(frozen=True)
class Version:
    """The configs of a version of Stable Diffusion."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    texts: dict[str, Text]  # by component
    index: dict[str, Any]  # of model_index.json


V1 = Version(V1_UNET, VAE_SHAPE, {"text_encoder": Text(CLIPTextModel, V1_TEXT, TEXT)}, INDEX)
V2 = Version(V2_UNET, VAE_SHAPE, {"text_encoder": Text(CLIPTextModel, V2_TEXT, OPEN_CLIP)}, INDEX)
XL = Version(
    XL_UNET,
    XL_VAE,
    {
        "text_encoder": Text(CLIPTextModel, V1_TEXT, XL_CLIP),
        "text_encoder_2": Text(CLIPTextModelWithProjection, XL_TEXT, XL_OPEN_CLIP),
    },
    XL_INDEX,
)


def empty_models(made: Path, version: Version) -> dict[str, nn.Module]:
    """Build the UNet, VAE and text encoders without weights, on the meta device, from a folder's config files."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(read_json(made / "unet/config.json")),
            "vae": AutoencoderKL.from_config(read_json(made / "vae/config.json")),
        } | {
            part: text.kind(CLIPTextConfig.from_pretrained(made / part))
            for part, text in version.texts.items()
        }


def rename(
    tensors: dict[str, Tensor], models: dict[str, nn.Module], version: Version
) -> dict[str, dict[str, Tensor]]:
    """Return a one-file model's weights under diffusers' and transformers' names, as {component: weights}.

    Raises ValueError if a weight of a model in `models` is missing, or has another shape.
    """

    def of(prefix: str) -> dict[str, Tensor]:
        return {name: t for name, t in tensors.items() if name.startswith(prefix)}

    renamed = {
        "unet": convert_ldm_unet_checkpoint(of(UNET), models["unet"].config),
        "vae": convert_ldm_vae_checkpoint(of(VAE), models["vae"].config),
    }
    for part, text in version.texts.items():
        renamed[part] = _rename_text(of(text.prefix), text, models[part])
    for part, weights in renamed.items():
        _compare(part, weights, models[part])
    return renamed


def _rename_text(weights: dict[str, Tensor], text: Text, model: nn.Module) -> dict[str, Tensor]:
    if text.is_open_clip:
        renamed = convert_open_clip_checkpoint(model, weights, text.prefix)
    else:
        renamed = convert_ldm_clip_checkpoint(weights)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}
    projection = bare.pop("text_projection.weight", None)
    ignored = ("position_ids", "logit_scale")
    # names that all versions of transformers read
    named = {f"text_model.{n}": t for n, t in bare.items() if not n.endswith(ignored)}
    if text.kind is CLIPTextModelWithProjection and projection is not None:
        named["text_projection.weight"] = projection
    return named


def _compare(part: str, weights: dict[str, Tensor], model: nn.Module) -> None:
    asked = {n.removeprefix("text_model."): t.shape for n, t in model.state_dict().items()}
    given = {n.removeprefix("text_model."): t.shape for n, t in weights.items()}
    for name, shape in asked.items():
        if given.get(name) != shape and not name.endswith("position_ids"):
            what = f"has {tuple(given[name])}" if name in given else "is missing"
            raise ValueError(
                f"its {part.replace('_', ' ')} is not of this shape: {name} {what}, {tuple(shape)} is asked for"
            )
