"""Check the files, settings and weights of a base model before the first training step."""

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
PROCESSORS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
# a component's settings file, by the end of its class name; a model has weights as well
SETTINGS = {"Scheduler": "scheduler_config.json"}
SETTINGS |= dict.fromkeys(PROCESSORS, "preprocessor_config.json")
NO_CHECKER = (
    'convert it to safetensors, or write "safety_checker": [null, null] in model_index.json of a copy of that folder, '
    "which turns the check of pictures off"
)


def check_files(folder: Path) -> None:
    """Raise ValueError if model_index.json or a file that it requires is missing, pickled or truncated."""
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
    for name, kind in parts.items():
        _check_weights(folder / name, kind)


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
    """Load a component of a base model onto the CPU, and check its weights on `device`.

    Raises ValueError if a weight is NaN, inf or missing; loaders would initialize a missing one at random.
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
    """Raise ValueError if a base model's components do not fit one another, or its prediction type is unsupported."""
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
