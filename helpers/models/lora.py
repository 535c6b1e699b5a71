"""Write, read and load LoRA files in diffusers' layout, with rank and alpha in the metadata.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight     (rank, in)
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight           (out, rank)

The metadata hold each component's rank and alpha, which diffusers reads since 0.34.
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
SETTINGS = (".r", ".lora_alpha", ".target_modules")  # known to every version of peft
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
OTHER_NAMES = (  # of transformers 5.6's modules, and of version 0.2: up to three schemes in a file
    (re.compile(r"\.lora(_linear_layer)?\.down\.weight$"), DOWN),
    (re.compile(r"\.lora(_linear_layer)?\.up\.weight$"), UP),
    (re.compile(r"^text_encoder\.(?!text_model\.)"), "text_encoder.text_model."),
)


@dataclass(frozen=True)
class Lora:
    """A LoRA: the trained tensors by name, alpha by layer, and peft's settings."""

    tensors: dict[str, Tensor]
    alpha: dict[str, float]
    settings: dict[str, Any]

    @property
    def parts(self) -> set[str]:
        """The pipeline components that the LoRA changes: `unet`, `text_encoder` or both."""
        return {name.split(".")[0] for name in self.alpha}

    @property
    def scaled(self) -> dict[str, Tensor]:
        """The tensors with `lora_B` multiplied by alpha / rank, for programs that assume alpha = rank."""
        return {
            name: tensor * (self.alpha[name.removesuffix(UP)] / tensor.shape[1])
            if name.endswith(UP)
            else tensor
            for name, tensor in self.tensors.items()
        }


def extract_lora(modules: dict[str, nn.Module]) -> Lora:
    """Extract the LoRA from a pipeline's modules, as float32 tensors on the CPU."""
    tensors, alpha, settings = {}, {}, {}
    for part, module in modules.items():
        for own in module.peft_config.values():
            settings |= {f"{part}.r": own.r, f"{part}.lora_alpha": own.lora_alpha}
            settings[f"{part}.target_modules"] = sorted(own.target_modules)
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
    """Write a LoRA file that diffusers' `load_lora_weights` reads, with `metadata` added to the file's header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {METADATA: json.dumps(lora.settings)} if lora.settings else {}
    save_file(lora.tensors, path, {"format": "pt"} | settings | metadata)


def read_lora(path: Path) -> Lora:
    """Read a LoRA file of any version of this project. Raises RunError if the file is not safetensors."""
    tensors = {_name_in_file(name): tensor for name, tensor in load_file(path).items()}
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    rank = {n.removesuffix(UP): t.shape[1] for n, t in tensors.items() if n.endswith(UP)}
    alpha = {n: metadata.get(f"{n.split('.')[0]}.lora_alpha", r) for n, r in rank.items()}
    settings = {name: value for name, value in metadata.items() if name.endswith(SETTINGS)}
    return Lora(tensors, alpha, settings)


def _name_in_file(name: str) -> str:
    for pattern, ours in OTHER_NAMES:
        name = pattern.sub(ours, name)
    return name


def load_lora(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Load a LoRA file into a pipeline by diffusers' own loader. Raises RunError for a file that the loader refuses.

    diffusers before 0.41 does not find the text encoder's layers under transformers 5.6, whose modules have no
    `text_model.` in their names: the loader is given the modules' names.
    """
    place = {"weight_name": path.name, "use_safetensors": True}
    is_older = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 41)
    try:
        if not is_older or hasattr(pipeline.text_encoder, "text_model"):
            pipeline.load_lora_weights(path.parent, **place)
            return
        tensors, alphas, settings = pipeline.lora_state_dict(
            path.parent, **place, return_lora_metadata=True
        )
        given = {"network_alphas": alphas, "metadata": settings, "_pipeline": pipeline}
        pipeline.load_lora_into_unet(tensors, unet=pipeline.unet, **given)
        tensors = {name.replace(".text_model.", ".", 1): t for name, t in tensors.items()}
        pipeline.load_lora_into_text_encoder(tensors, text_encoder=pipeline.text_encoder, **given)
    except Exception as error:  # the loader raises many kinds
        raise unreadable(path, error) from error
