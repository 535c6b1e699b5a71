"""Check the files, settings and weights of a base model before the first training step."""

import inspect
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTokenizer

from helpers.models.families import (
    Family,
    Settings,
    family_of,
    needed_components,
    read_settings,
)
from helpers.models.untrusted import settings_in

PROCESSORS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
# a component's settings file, by the end of its class name; a model has weights as well
SETTINGS = {"Scheduler": "scheduler_config.json"}
SETTINGS |= dict.fromkeys(PROCESSORS, "preprocessor_config.json")
NO_CHECKER = (
    'convert it to safetensors, or write "safety_checker": [null, null] in model_index.json of a copy of that folder, '
    "which turns the check of pictures off"
)


def check_settings(folder: Path) -> tuple[Family, Settings]:
    """Return a base model's family and settings, from its JSON files alone.

    Raises ValueError if settings are missing or no JSON, do not fit one another, or cannot be trained.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError("it has no model_index.json, which lists its components")
    named = settings_in(index)
    parts = _parts(named)
    if missing := [name for name in needed_components(named) if name not in parts]:
        raise ValueError(f"model_index.json names no {missing[0]}")
    for name, kind in parts.items():
        check_part_settings(folder / name, kind)
    settings = read_settings(folder)
    family = family_of(settings)
    check_parts(family, settings)
    return family, settings


def check_weights(folder: Path, settings: Settings) -> None:
    """Raise ValueError if a component's weights are missing, pickled or truncated."""
    for name, kind in _parts(settings["model_index"]).items():
        _check_weights(folder / name, kind)


def _parts(index: dict[str, Any]) -> dict[str, str]:
    """Return the class of each component that model_index.json names."""
    return {k: v[1] for k, v in index.items() if isinstance(v, list) and v[1] is not None}


def check_part_settings(part: Path, kind: str) -> None:
    """Raise ValueError if a component's settings file, or a tokenizer's vocabulary, is missing or not JSON."""
    if "Tokenizer" in kind:
        if not (part / "tokenizer.json").is_file():
            _require(part / "vocab.json"), _require(part / "merges.txt")
        for path in map(part.joinpath, ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
            if path.is_file():
                settings_in(path)
        return
    ends = [end for end in SETTINGS if kind.endswith(end)]
    settings = part / (SETTINGS[ends[0]] if ends else "config.json")
    _require(settings), settings_in(settings)


def _check_weights(part: Path, kind: str) -> None:
    if "Tokenizer" in kind or kind.endswith(tuple(SETTINGS)):
        return
    weights = sorted(part.glob("[!.]*.safetensors"))  # macOS leaves a ._NAME beside each file
    if not weights:
        what = "no safetensors weights"
        if pickled := sorted(part.glob("*.bin")):
            what = f"only pickled weights, {part.name}/{pickled[0].name}, which could run anything"
        why = f"{part.name} has {what}"
        raise ValueError(f"{why}: {NO_CHECKER}" if part.name == "safety_checker" else why)
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{part.name}/{path.name} is not a complete safetensors file, {error}: copy or download it again"
            ) from error


def _require(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path.parent.name}/{path.name} is missing")


def check_parts(family: Family, settings: Settings) -> None:
    """Raise ValueError if the settings of a base's components do not fit one another, or cannot be trained."""
    name, latents = family.DENOISER[0], settings["vae"].get("latent_channels", 4)
    denoiser = settings[name]
    channels = denoiser.get("in_channels", 4), denoiser.get("out_channels", 4)
    if channels != (latents, latents):
        raise ValueError(
            f"{name}/config.json has in_channels {channels[0]} and out_channels {channels[1]}, and the VAE's latents "
            f"have {latents}: use a text-to-image model"
        )
    family.check(settings)


def check_latents(vae: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise ValueError if a VAE makes other latents than a base's own, which the denoiser was trained on."""
    default = inspect.signature(AutoencoderKL).parameters
    for name in ("scaling_factor", "shift_factor", "block_out_channels"):
        theirs, ours = (values.get(name, default[name].default) for values in (vae, own))
        if name == "block_out_channels":  # each but the last halves the sides
            name, theirs, ours = "downsampling", 2 ** (len(theirs) - 1), 2 ** (len(ours) - 1)
        if theirs != ours:
            raise ValueError(
                f"its latents have a {name.replace('_', ' ')} of {theirs}, and those of the base's own VAE {ours}: it "
                "belongs to another kind of model"
            )


def check_tokenizer(tokenizer: CLIPTokenizer, text_encoder: nn.Module) -> None:
    """Raise ValueError if a tokenizer fails, or has more words than its text encoder."""
    try:
        tokenizer("a picture")
    except Exception as error:  # of any kind, from the library
        raise ValueError(
            f"tokenizer/ cannot tokenize, {error}: copy or download it again"
        ) from error
    if len(tokenizer) > text_encoder.config.vocab_size:
        raise ValueError(
            f"tokenizer/ has {len(tokenizer)} words and text_encoder/config.json a vocab_size of "
            f"{text_encoder.config.vocab_size}: they belong to different models"
        )
