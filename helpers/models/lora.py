"""Write, read and load LoRA files in diffusers' layout, with rank and alpha in the metadata.

    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight     (rank, in)
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight           (out, rank)

The metadata hold each component's rank and alpha, which diffusers reads since 0.34.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file as read_tensors
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
    (re.compile(r"^(text_encoder(_2)?)\.(?!text_model\.)"), r"\1.text_model."),
    (re.compile(r"\.self_attn\.to_([qkv])\b"), r".self_attn.\1_proj"),
    (re.compile(r"\.self_attn\.to_out\.0\b"), ".self_attn.out_proj"),
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


def lora_of(factors: dict[str, tuple[Tensor, Tensor]]) -> Lora:
    """Return the LoRA of factors (up, down) by layer, such as `unet.mid_block.resnets.0.conv1`; alpha is the rank."""
    tensors = {}
    for name, (up, down) in factors.items():
        tensors |= {_name_in_file(name) + DOWN: down, _name_in_file(name) + UP: up}
    return Lora(tensors, {_name_in_file(n): len(down) for n, (_, down) in factors.items()}, {})


def write_lora(path: Path, lora: Lora, metadata: dict[str, str]) -> None:
    """Write a LoRA file that diffusers' `load_lora_weights` reads, with `metadata` added to the file's header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {METADATA: json.dumps(lora.settings)} if lora.settings else {}
    save_file(lora.tensors, path, {"format": "pt"} | settings | metadata)


def read_lora(path: Path) -> Lora:
    """Read a LoRA file written by any version of this project. Raises RunError if the file is not safetensors."""
    tensors = {_name_in_file(name): tensor for name, tensor in load_file(path).items()}
    metadata = _metadata(path)
    rank = {n.removesuffix(UP): t.shape[1] for n, t in tensors.items() if n.endswith(UP)}
    alpha = {n: metadata.get(f"{n.split('.')[0]}.lora_alpha", r) for n, r in rank.items()}
    settings = {name: value for name, value in metadata.items() if name.endswith(SETTINGS)}
    return Lora(tensors, alpha, settings)


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(METADATA, "{}"))


def read_foreign_lora(path: Path, pipeline: DiffusionPipeline) -> Lora:
    """Read a LoRA file in any layout that diffusers' loaders of this pipeline know, such as kohya's.

    Raises SafetensorError if the file is not safetensors, and ValueError if it holds no LoRA, more than one, or NaN.
    """
    read = read_tensors(path)
    tensors, alphas = pipeline.lora_state_dict(read, unet_config=pipeline.unet.config)
    tensors = _rename(tensors)
    rank = {name.removesuffix(UP): t.shape[1] for name, t in tensors.items() if name.endswith(UP)}
    unpaired = tensors.keys() ^ {name + end for name in rank for end in (DOWN, UP)}
    if not rank or not all(rank.values()) or unpaired:
        raise ValueError(f"it is no LoRA of a kind that is known here{_for_example(unpaired)}")
    by_layer = _rename({name.removesuffix(".alpha"): a for name, a in (alphas or {}).items()})
    by_layer = {name.removesuffix(DOWN): alpha for name, alpha in by_layer.items()}
    by_part = _metadata(path)
    alpha = {
        n: float(by_layer.get(n, by_part.get(f"{n.split('.')[0]}.lora_alpha", r)))
        for n, r in rank.items()
    }
    if bad := [n for n, t in tensors.items() if not t.float().isfinite().all()]:
        raise ValueError(f"it has NaN or inf in {bad[0]}")
    if bad := [n for n, value in alpha.items() if not math.isfinite(value)]:
        raise ValueError(f"its alpha of {bad[0]} is {alpha[bad[0]]}")
    return Lora(tensors, alpha, {})


def _rename(named: dict[str, Any]) -> dict[str, Any]:
    return {_name_in_file(n): value for n, value in convert_unet_state_dict_to_peft(named).items()}


def _for_example(names: set[str]) -> str:
    return f", by {min(names)}" if names else ""


def find_misfit(lora: Lora, weights: Mapping[str, Tensor]) -> str:
    """Return in words which layer of a LoRA a model lacks or has in another shape; "" if all fit.

    weights  of the whole pipeline, as {component.name: tensor}
    """
    for layer in lora.alpha:
        name = _weight_name(layer, weights)
        if name is None:
            return f"its layer {layer} is none of this model's"
        up, down = lora.tensors[layer + UP], lora.tensors[layer + DOWN]
        changed, own = _size((len(up), *down.shape[1:])), _size(weights[name].shape)
        if changed != own or up.shape[1] != len(down):
            return f"its layer {layer} is {changed}, this model's {own}"
    return ""


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    # a linear layer, and a convolution of 1 x 1, are given for one another
    return tuple(shape[:2]) if set(shape[2:]) <= {1} else tuple(shape)


def lora_weights(lora: Lora, weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the layer by the name of each weight that a LoRA changes. The LoRA must fit (`find_misfit`)."""
    return {_weight_name(layer, weights): layer for layer in lora.alpha}


def lora_change(lora: Lora, layer: str) -> Tensor:
    """Return what a LoRA adds to a layer, `alpha / rank * BA`, in float32 and the layer's shape.

    Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """
    up, down = lora.tensors[layer + UP].float(), lora.tensors[layer + DOWN].float()
    change = lora.alpha[layer] / len(down) * (up.flatten(1) @ down.flatten(1))
    return change.view(len(up), *down.shape[1:])


def _weight_name(layer: str, weights: Mapping[str, Tensor]) -> str | None:
    # transformers 5.6's text encoders have no `text_model.` in their names
    names = (f"{layer}.weight", f"{layer.replace('.text_model.', '.', 1)}.weight")
    return next((name for name in names if name in weights), None)


def _name_in_file(name: str) -> str:
    for pattern, ours in OTHER_NAMES:
        name = pattern.sub(ours, name)
    return name


def load_lora(pipeline: DiffusionPipeline, path: Path) -> None:
    """Load a LoRA file into a pipeline by diffusers' own loader. Raises RunError for a file that the loader refuses.

    diffusers before 0.41 does not find the text encoder's layers under transformers 5.6, whose modules have no
    `text_model.` in their names: the loader is given the modules' names.
    """
    place = {"weight_name": path.name, "use_safetensors": True}
    is_older = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 41)
    try:
        parts = pipeline.components.items()
        encoders = {n: part for n, part in parts if n.startswith("text_encoder") and part}
        if not is_older or all(hasattr(encoder, "text_model") for encoder in encoders.values()):
            pipeline.load_lora_weights(path.parent, **place)
            return
        if len(encoders) > 1:  # SDXL, whose LoRA may have the original names of blocks
            place["unet_config"] = pipeline.unet.config
        tensors, alphas, settings = pipeline.lora_state_dict(
            path.parent, **place, return_lora_metadata=True
        )
        given = {"network_alphas": alphas, "metadata": settings, "_pipeline": pipeline}
        pipeline.load_lora_into_unet(tensors, unet=pipeline.unet, **given)
        for part, encoder in encoders.items():
            own = {name: t for name, t in tensors.items() if name.startswith(f"{part}.")}
            if not hasattr(encoder, "text_model"):
                own = {name.replace(".text_model.", ".", 1): t for name, t in own.items()}
            if own:
                pipeline.load_lora_into_text_encoder(
                    own, text_encoder=encoder, prefix=part, **given
                )
    except Exception as error:  # the loader raises many kinds
        raise unreadable(path, error) from error
