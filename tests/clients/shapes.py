"""The names and shapes of SDXL's exports at full size, of which no weights are made."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from helpers.inference.share.modelspec import Variant
from helpers.inference.share.one_file import to_kohya
from helpers.models.lora import lora_of
from helpers.train.model import build_encoders
from tests.bases import full_size_sdxl, make_sdxl


def make_shapes(folder: Path) -> Path:
    """Write shapes.json: {file: {name: shape}} of the one file, and of a LoRA of all layers in both namings."""
    variant = Variant.read(full_size_sdxl(folder / "sdxl", make_sdxl(folder / "tiny")))
    family, settings = variant.family, variant.settings
    name, kind = family.DENOISER
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(settings["vae"])
        modules: dict[str, nn.Module] = {name: kind.from_config(settings[name]), "vae": vae}
        modules |= build_encoders(family, settings)
        factors = {}
        for part, module in modules.items():
            targets = tuple(
                family.LORA_TARGETS["attention_ff_conv"] if part == name else family.TEXT_TARGETS
            )
            for layer, weight in module.named_parameters():
                is_target = layer.removesuffix(".weight").endswith(targets)
                if part != "vae" and is_target and layer.endswith(".weight"):
                    factors[f"{part}.{layer.removesuffix('.weight')}"] = _factors(weight)
        states = {part: module.state_dict() for part, module in modules.items()}
        files = {"model": family.to_original(states, settings)}
    files["lora"], files["blocks"] = to_kohya(lora_of(factors), variant)
    told = {f: {n: list(t.shape) for n, t in state.items()} for f, state in files.items()}
    (folder / "shapes.json").write_text(json.dumps(told))
    return folder


def _factors(weight: Tensor) -> tuple[Tensor, Tensor]:
    out, *others = weight.shape
    return torch.empty(out, 1, *(1 for _ in others[1:])), torch.empty(1, *others)
