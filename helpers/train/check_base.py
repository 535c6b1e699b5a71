"""Check the base model before the first step, and refuse whatever would make the export fail."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from helpers.models.untrusted import settings_in

Model = TypeVar("Model", bound=nn.Module)
NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
TRAINABLE = ("epsilon", "v_prediction")
SETTINGS = {  # a component's settings file, by the end of its class name; a model has weights as well
    "Scheduler": "scheduler_config.json",
    "ImageProcessor": "preprocessor_config.json",
    "ImageProcessorFast": "preprocessor_config.json",
    "ImageProcessorPil": "preprocessor_config.json",
    "FeatureExtractor": "preprocessor_config.json",
}
NO_CHECKER = (
    'convert it to safetensors, or write "safety_checker": [null, null] in model_index.json of a copy of that folder, '
    "which turns the check of pictures off"
)


def check_files(folder: Path) -> None:
    """Raise ValueError if model_index.json or a file that it requires is missing, pickled or truncated."""
    for name, kind in _check_index(folder).items():
        _check_weights(folder / name, kind)


def _check_index(folder: Path) -> dict[str, str]:
    """Return the class of each component that model_index.json lists.

    Raises ValueError if settings or a tokenizer are missing or not JSON.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError("it has no model_index.json, which lists its components")
    named = settings_in(index).items()
    parts = {k: v[1] for k, v in named if isinstance(v, list) and v[1] is not None}
    if missing := [name for name in NEEDED if name not in parts]:
        raise ValueError(f"model_index.json names no {missing[0]}")
    if "FlowMatch" in parts["scheduler"]:
        raise ValueError(f"model_index.json names {parts['scheduler']}, which cannot be trained")
    for name, kind in parts.items():
        check_part_settings(folder / name, kind)
    return parts


def check_part_settings(part: Path, kind: str) -> None:
    """Raise ValueError if a component's settings, or a tokenizer's vocabulary, are missing or not JSON."""
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
        pickled = sorted(part.glob("*.bin"))
        what = f"only pickled weights, {part.name}/{pickled[0].name}, which could run anything"
        why = f"{part.name} has {what if pickled else 'no safetensors weights'}"
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


def load_model(
    kind: type[Model], folder: Path, part: str, dtype: torch.dtype, device: torch.device
) -> Model:
    """Load a component of a base model onto the CPU, and check its weights for NaN and inf on `device`.

    Raises ValueError if a weight is missing, which loaders would initialize at random, or is NaN or inf.
    """
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "subfolder": part}
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    except (RuntimeError, ValueError) as error:
        what = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(f"{part}/ does not have the weights of its config.json, {what}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("position_ids"))
    if missing:
        raise ValueError(
            f"{part}/ lacks {len(missing)} of the weights that its config.json needs, such as {missing[0]}"
        )
    for name, tensor in model.state_dict().items():
        if not tensor.to(device).isfinite().all():
            raise ValueError(f"{part}/ has NaN or inf in {name}")
    return model


def check_parts(
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    noise_scheduler: DDPMScheduler,
) -> None:
    """Raise ValueError if the components do not fit one another, or the prediction type cannot be trained."""
    kind, latents = noise_scheduler.config.prediction_type, vae.config.latent_channels
    if kind not in TRAINABLE:
        raise ValueError(
            f"scheduler/scheduler_config.json has prediction_type {kind!r}: {' and '.join(TRAINABLE)} can be trained"
        )
    if not noise_scheduler.alphas_cumprod.isfinite().all():
        raise ValueError(
            "scheduler/scheduler_config.json has betas that give no finite noise schedule"
        )
    if (unet.config.in_channels, unet.config.out_channels) != (latents, latents):
        raise ValueError(
            f"unet/config.json has in_channels {unet.config.in_channels} and out_channels "
            f"{unet.config.out_channels}, and the VAE's latents have {latents}: use a text-to-image model"
        )
    width = text_encoder.config.hidden_size
    if unet.config.cross_attention_dim != width:
        raise ValueError(
            f"unet/config.json has cross_attention_dim {unet.config.cross_attention_dim} and "
            f"text_encoder/config.json hidden_size {width}: they belong to different models"
        )
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if getattr(unet.config, name, None) is not None:
            raise ValueError(
                f"unet/config.json has {name}, an input that a text prompt cannot fill"
            )
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
