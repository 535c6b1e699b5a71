"""Configs of Stable Diffusion 1 and 2, and the renaming of their original weights (CompVis, 2022) for diffusers."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.core.files import read_json

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
OPEN_CLIP = "cond_stage_model.model."  # Stable Diffusion 2's text encoder
SCHEDULE = {  # of both versions
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
VAE_SHAPE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
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
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.37.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def empty_models(made: Path) -> dict[str, nn.Module]:
    """Build the UNet, VAE and text encoder without weights, on the meta device, from a folder's config files."""
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(read_json(made / "unet/config.json")),
            "vae": AutoencoderKL.from_config(read_json(made / "vae/config.json")),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_pretrained(made / "text_encoder")),
        }


def rename(
    tensors: dict[str, Tensor], models: dict[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Rename a one-file model's weights to diffusers' and transformers' names, as {component: weights}.

    Raises ValueError if a weight of a model in `models` is missing, or has another shape.
    """
    unet, vae, text = (
        {name: t for name, t in tensors.items() if name.startswith(prefix)}
        for prefix in (UNET, VAE, TEXT)
    )
    renamed = {
        "unet": convert_ldm_unet_checkpoint(unet, models["unet"].config),
        "vae": convert_ldm_vae_checkpoint(vae, models["vae"].config),
        "text_encoder": _rename_text(text, models["text_encoder"]),
    }
    for part, weights in renamed.items():
        _compare(part, weights, models[part])
    return renamed


def _rename_text(text: dict[str, Tensor], model: CLIPTextModel) -> dict[str, Tensor]:
    """Rename a text encoder's original weights to names that all versions of transformers read."""
    if any(name.startswith(OPEN_CLIP) for name in text):
        renamed = convert_open_clip_checkpoint(model, text, OPEN_CLIP)
    else:
        renamed = convert_ldm_clip_checkpoint(text)
    bare = {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}
    ignored = ("position_ids", "text_projection.weight", "logit_scale")
    return {f"text_model.{n}": t for n, t in bare.items() if not n.endswith(ignored)}


def _compare(part: str, weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError if `weights` lacks a weight of the model, or has a weight in another shape."""
    asked = {n.removeprefix("text_model."): t.shape for n, t in model.state_dict().items()}
    given = {n.removeprefix("text_model."): t.shape for n, t in weights.items()}
    for name, shape in asked.items():
        if given.get(name) != shape and not name.endswith("position_ids"):
            what = f"has {tuple(given[name])}" if name in given else "is missing"
            raise ValueError(
                f"its {part.replace('_', ' ')} is not of this shape: {name} {what}, {tuple(shape)} is asked for"
            )
