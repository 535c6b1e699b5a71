"""Rename weights from diffusers' names to those of the original Stable Diffusion 1 and 2 (2022) and of sd-scripts.

The numbers of levels and blocks are taken from the model's own config, so that models of any size are converted.
After diffusers' script convert_diffusers_to_original_stable_diffusion.py, which cannot be imported and knows one size.
"""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.core.files import read_json
from helpers.models.lora import DOWN, UP, Lora

State = dict[str, Tensor]
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
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


def original_state(model: Path) -> State:
    """Return the weights in a pipeline's folder by their names in an original Stable Diffusion checkpoint."""
    unet, vae, text = (load_file(model / part / name) for part, name in WEIGHTS.items())
    configs = {part: read_json(model / part / "config.json") for part in WEIGHTS}
    config = configs["text_encoder"].get("text_config", configs["text_encoder"])
    if config["hidden_act"] == "gelu":  # OpenCLIP, as in Stable Diffusion 2; CLIP has quick_gelu
        text = text_encoder_to_openclip(text)
    else:
        text = text_encoder_to_original(text, config["max_position_embeddings"])
    return unet_to_original(unet, configs["unet"]) | vae_to_original(vae, configs["vae"]) | text


def unet_to_original(state: State, config: dict[str, Any]) -> State:
    """Return a UNet2DConditionModel's weights by their original names, `model.diffusion_model.*`."""
    per_level = config["layers_per_block"] + 1
    return {
        "model.diffusion_model." + _unet_name(name, per_level, state): tensor
        for name, tensor in state.items()
    }


def _unet_name(name: str, per_level: int, state: State) -> str:
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
        attends = f"up_blocks.{level}.attentions.0.norm.weight" in state
        place = f"{(level + 1) * per_level - 1}.{1 + attends}." + rest
    else:
        place = f"{first + level * per_level + index}.{int(kind == 'attentions')}." + rest
    return f"{blocks}.{place}"


def vae_to_original(state: State, config: dict[str, Any]) -> State:
    """Return an AutoencoderKL's weights by their original names, `first_stage_model.*`."""
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


def to_kohya(lora: Lora) -> State:
    """Return a LoRA in the layout of kohya's sd-scripts: down, up and alpha of each layer.

    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha
    """
    converted = {}
    for name, alpha in lora.alpha.items():
        layer = name.replace("text_encoder.", "lora_te.", 1).replace("unet.", "lora_unet.", 1)
        layer = layer.replace(".", "_")
        converted[f"{layer}.lora_down.weight"] = lora.tensors[name + DOWN]
        converted[f"{layer}.lora_up.weight"] = lora.tensors[name + UP]
        converted[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return converted
