"""Rename weights from diffusers' names to those of the original Stable Diffusion 1 and 2 (2022) and XL (2023).

The numbers of levels and blocks are taken from the model's own config, so that models of any size are converted.
After diffusers' script convert_diffusers_to_original_stable_diffusion.py, which cannot be imported and knows one size.
"""

import re
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",  # SDXL's pooled text and sizes
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "query": "q",  # as diffusers named them until 2023
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
OPENCLIP = {
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
}


def unet_to_original(state: State, config: dict[str, Any]) -> State:
    """Return a UNet2DConditionModel's weights by their original names, `model.diffusion_model.*`."""
    return {
        "model.diffusion_model." + unet_name(name, config): tensor for name, tensor in state.items()
    }


def unet_name(name: str, config: dict[str, Any]) -> str:
    """Return the original name of a weight of a UNet2DConditionModel with this config."""
    per_level = config["layers_per_block"] + 1
    if ".resnets." in name:
        block, part, end = name.rsplit(".", 2)
        name = f"{block}.{RESNET[part]}.{end}"
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.+)", name)
    side, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    if kind == "downsamplers":
        place = f"{(level + 1) * per_level}.0.op." + rest.removeprefix("conv.")
    elif kind == "upsamplers":  # the last module of the level's last block
        attends = "Attn" in config["up_block_types"][level]
        place = f"{(level + 1) * per_level - 1}.{1 + attends}." + rest
    else:
        place = f"{first + level * per_level + index}.{int(kind == 'attentions')}." + rest
    return f"{blocks}.{place}"


def vae_to_original(state: State, config: dict[str, Any]) -> State:
    """Rename an AutoencoderKL's weights to the original names, `first_stage_model.*`."""
    levels = len(config["block_out_channels"])
    renamed = {}
    for name, tensor in state.items():
        new = _vae_name(name, levels)
        # the original's attention has 1x1 convolutions for linear layers
        is_kernel = ".attn_1." in new and new.endswith("weight") and ".norm." not in new
        renamed["first_stage_model." + new] = tensor[:, :, None, None] if is_kernel else tensor
    return renamed


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"\.(down|up)samplers\.0\.", r".\1sample.", name)
    name = name.replace("down_blocks.", "down.").replace(".resnets.", ".block.")
    if "mid_block.attentions.0." in name:
        block, rest = name.split("mid_block.attentions.0.")
        part, end = rest.rsplit(".", 1)
        return f"{block}mid.attn_1.{ATTENTION[part]}.{end}"
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def text_encoder_to_original(state: State, positions: int) -> State:
    """Rename a CLIPTextModel's weights to the original names, `cond_stage_model.transformer.*`.

    The original has the position ids as a tensor of their own.
    """
    named = text_model_names(state) | {
        "text_model.embeddings.position_ids": torch.arange(positions)[None]  # (1, T) int64
    }
    return {"cond_stage_model.transformer." + name: tensor for name, tensor in named.items()}


def text_model_names(state: State) -> State:
    """Return a text encoder's weights by names that begin with `text_model.`, as in all published files.

    transformers 5 names weights with or without this prefix, as the model was made or loaded.
    """
    return {
        "text_model." + name.removeprefix("text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }


def text_encoder_to_openclip(state: State) -> State:
    """Rename a CLIPTextModel's weights as OpenCLIP does in Stable Diffusion 2: `cond_stage_model.model.*`.

    Loaders of that format expect one layer more than diffusers has, and a projection, and use neither. Both are
    written, as sd-scripts does, so that no key is missing.
    """
    renamed = openclip_names(state)
    layers = 1 + max(int(name.split(".")[2]) for name in renamed if ".resblocks." in name)
    last, unused = f"transformer.resblocks.{layers - 1}.", f"transformer.resblocks.{layers}."
    renamed |= {
        name.replace(last, unused): tensor.clone()
        for name, tensor in renamed.items()
        if name.startswith(last)
    }
    norm = renamed["ln_final.weight"]
    renamed["text_projection"] = torch.eye(len(norm), dtype=norm.dtype)
    renamed["logit_scale"] = torch.tensor(1.0, dtype=norm.dtype)
    return {"cond_stage_model.model." + name: tensor for name, tensor in renamed.items()}


def openclip_names(state: State) -> State:
    """Return a CLIP text encoder's weights by OpenCLIP's names; OpenCLIP has the projection transposed.

    https://github.com/Stability-AI/generative-models/issues/111
    """
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("position_ids") or ".self_attn.k_proj." in name or ".v_proj." in name:
            continue
        if name == "text_projection.weight":
            name, tensor = "text_projection", tensor.T
        if ".self_attn.q_proj." in name:  # query, key and value are one tensor there
            qkv = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name, tensor = name.replace(".self_attn.q_proj.", ".attn.in_proj_"), torch.cat(qkv)
        for ours, theirs in OPENCLIP.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    return renamed
