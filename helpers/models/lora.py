"""A LoRA's file in diffusers' layout, and a LoRA in a pipeline: one scheme of names, and alpha with it.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight     (rank, in)
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight           (out, rank)

Rank and alpha of each part stand in the metadata, where diffusers reads them since 0.34.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.models.readback import unreadable
from helpers.models.untrusted import load_file

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
METADATA = "lora_adapter_metadata"  # diffusers' key
SETTINGS = (".r", ".lora_alpha", ".target_modules")  # that every version of peft knows
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
OTHER_NAMES = (  # a module's own in transformers 5.6, and those of version 0.2, up to three schemes in a file
    (re.compile(r"\.lora(_linear_layer)?\.down\.weight$"), DOWN),
    (re.compile(r"\.lora(_linear_layer)?\.up\.weight$"), UP),
    (re.compile(r"^text_encoder\.(?!text_model\.)"), "text_encoder.text_model."),
)


@dataclass(frozen=True)
class Lora:
    """A LoRA's tensors by name as they were trained, alpha of each layer, and peft's settings as a file tells them."""

    tensors: dict[str, Tensor]
    alpha: dict[str, float]
    settings: dict[str, Any]

    @property
    def parts(self) -> set[str]:
        """What it changes of a pipeline: `unet`, or `text_encoder` as well."""
        return {name.split(".")[0] for name in self.alpha}

    @property
    def scaled(self) -> dict[str, Tensor]:
        """The tensors with alpha / rank multiplied into `lora_B`: what acts where alpha is the rank."""
        return {
            name: tensor * (self.alpha[name.removesuffix(UP)] / tensor.shape[1])
            if name.endswith(UP)
            else tensor
            for name, tensor in self.tensors.items()
        }


def lora_of(modules: dict[str, nn.Module]) -> Lora:
    """The one LoRA that is in a pipeline's parts, read off their layers; float32 on the CPU."""
    tensors, alpha, settings = {}, {}, {}
    for part, module in modules.items():
        for own in module.peft_config.values():
            values = {"r": own.r, "lora_alpha": own.lora_alpha}
            values["target_modules"] = sorted(own.target_modules)
            settings |= {f"{part}.{name}": value for name, value in values.items()}
        for name, layer in module.named_modules():
            if isinstance(layer, LoraLayer):
                (adapter,) = layer.active_adapters
                down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                name = _name_in_file(f"{part}.{name}")
                tensors |= {name + DOWN: down, name + UP: up}
                alpha[name] = round(layer.scaling[adapter] * len(down), 6)
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    return Lora(tensors, alpha, settings)


def write_lora(path: Path, lora: Lora, metadata: dict[str, str]) -> None:
    """Write a LoRA for `load_lora_weights`, with what else its metadata are to tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {METADATA: json.dumps(lora.settings)} if lora.settings else {}
    save_file(lora.tensors, path, {"format": "pt"} | settings | metadata)


def read_lora(path: Path) -> Lora:
    """A file that this project wrote, in any of its versions. Raises RunError if it is no safetensors file."""
    tensors = {_name_in_file(name): tensor for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    rank = {n.removesuffix(UP): t.shape[1] for n, t in tensors.items() if n.endswith(UP)}
    alpha = {n: told.get(f"{n.split('.')[0]}.lora_alpha", r) for n, r in rank.items()}
    kept = {name: told[name] for name in told if name.endswith(SETTINGS)}
    return Lora(tensors, alpha, kept)


def _name_in_file(name: str) -> str:
    for pattern, ours in OTHER_NAMES:
        name = pattern.sub(ours, name)
    return name


def load_lora(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Have a pipeline take a LoRA's file, in either layout, by diffusers' own loader.

    diffusers before 0.41 does not find a text encoder's layers by the names that files have, once transformers 5.6
    took `text_model.` out of the module's: there it is given the module's. Raises RunError for whatever it refuses.
    """
    try:
        _load_lora(pipeline, path)
    except Exception as error:  # whatever the loader stumbles over
        raise unreadable(path, error) from error


def _load_lora(pipeline: StableDiffusionPipeline, path: Path) -> None:
    place = {"weight_name": path.name, "use_safetensors": True}
    is_older = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 41)
    if not is_older or hasattr(pipeline.text_encoder, "text_model"):
        pipeline.load_lora_weights(path.parent, **place)
        return
    tensors, alphas, settings = pipeline.lora_state_dict(
        path.parent, **place, return_lora_metadata=True
    )
    given = {"network_alphas": alphas, "metadata": settings, "_pipeline": pipeline}
    pipeline.load_lora_into_unet(tensors, unet=pipeline.unet, **given)
    tensors = {name.replace(".text_model.", ".", 1): tensor for name, tensor in tensors.items()}
    pipeline.load_lora_into_text_encoder(tensors, text_encoder=pipeline.text_encoder, **given)
