"""Rename weights from diffusers' names to those of the original Stable Diffusion 1 and 2 (2022), for ComfyUI.

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
    per_level = config["layers_per_block"] + 1
    renamed = {}
    for name, tensor in state.items():
        renamed["model.diffusion_model." + _unet_name(name, per_level, state)] = tensor
    return renamed


def _unet_name(name: str, per_level: int, state: State) -> str:
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(ours):
            return _resnet_name(theirs + name.removeprefix(ours), name)
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+?)\.(\d+)\.(.+)", name)
    side, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    blocks, first = ("input_blocks", 1) if side == "down" else ("output_blocks", 0)
    if kind == "downsamplers":
        place = f"{(level + 1) * per_level}.0.op." + rest.removeprefix("conv.")
    elif kind == "upsamplers":  # the last module of the level's last block
        attends = f"up_blocks.{level}.attentions.0.norm.weight" in state
        place = f"{(level + 1) * per_level - 1}.{1 + attends}." + rest
    else:
        place = f"{first + level * per_level + index}.{int(kind == 'attentions')}." + rest
    return _resnet_name(f"{blocks}.{place}", name)


def _resnet_name(renamed: str, name: str) -> str:
    """Return `renamed` with the original layer name if the diffusers `name` is in a resnet, else unchanged."""
    if ".resnets." not in name:
        return renamed
    block, part, end = renamed.rsplit(".", 2)
    return f"{block}.{RESNET[part]}.{end}"


def vae_to_original(state: State, config: dict[str, Any]) -> State:
    """Return an AutoencoderKL's weights by their original names, `first_stage_model.*`.

    Linear attention weights become 1x1 convolutions.
    """
    levels = len(config["block_out_channels"])
    renamed = {}
    for name, tensor in state.items():
        new = _vae_name(name, levels)
        is_kernel = ".attn_1." in new and new.endswith("weight") and ".norm." not in new
        renamed["first_stage_model." + new] = tensor[:, :, None, None] if is_kernel else tensor
    return renamed


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda m: f"up.{levels - 1 - int(m[1])}.upsample.",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        block, rest = name.split("mid_block.attentions.0.")
        part, end = rest.rsplit(".", 1)
        return f"{block}mid.attn_1.{ATTENTION[part]}.{end}"
    return name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def text_encoder_to_original(state: State, positions: int) -> State:
    """Return a CLIPTextModel's weights by their original names, `cond_stage_model.transformer.*`.

    transformers 5 names weights with or without `text_model.`, as the model was made or loaded. The original has this
    prefix, and the position ids as a tensor of their own.
    """
    renamed = {
        "cond_stage_model.transformer.text_model." + name.removeprefix("text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }
    ids = torch.arange(positions)[None]  # (1, T) int64
    return renamed | {"cond_stage_model.transformer.text_model.embeddings.position_ids": ids}


def text_encoder_to_openclip(state: State) -> State:
    """Return a CLIPTextModel's weights by OpenCLIP's names, `cond_stage_model.model.*`, as in Stable Diffusion 2.

    Loaders of that format expect one layer more than diffusers has, and a projection, and use neither. Both are
    written, as sd-scripts does, so that no key is missing.
    """
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("position_ids") or ".self_attn.k_proj." in name or ".v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:  # query, key and value are one tensor there
            qkv = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            name, tensor = name.replace(".self_attn.q_proj.", ".attn.in_proj_"), torch.cat(qkv)
        for ours, theirs in OPENCLIP.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
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
