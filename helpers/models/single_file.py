"""Convert one-file Stable Diffusion checkpoints, as ComfyUI and similar programs use, to diffusers layout.

Weights are renamed by diffusers' own conversion and keep their precision. Settings and the tokenizer, which the file
does not contain, are taken from files beside it (`unet/config.json`, `tokenizer/`), or else are those of Stable
Diffusion 1, 2 or XL, by the names of the text encoders' weights.
"""

import hashlib
import json
import logging
import re
import shutil
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTokenizer

from helpers.core.files import MANIFEST, locked, read_json, replacing_folder, sha256, write_json
from helpers.models import stable_diffusion as sd

log = logging.getLogger(__name__)
CONVERSION = 1  # the version of this conversion: raised when its result changes
TOKENIZER = "openai/clip-vit-large-patch14"  # whose vocabulary both versions have
FLOATS = {"F64", "F32", "F16", "BF16"}
REFUSED = {  # by how a weight's name begins: what the file is
    "conditioner.embedders.0.model.": "SDXL's refiner, which cannot be trained",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3, which is not trained here",
    "model.diffusion_model.double_blocks.": "Flux, which is not trained here",
    "double_blocks.": "Flux, which is not trained here",
    "lora_": "a LoRA, not a whole model: give the base that it was made for",
    "unet.": "a LoRA, not a whole model: give the base that it was made for",
    "control_model.": "a ControlNet, not a whole model",
    "controlnet_cond_embedding.": "a ControlNet, not a whole model",
    "down_blocks.": "a UNet alone: give the folder that holds unet/, vae/ and the others",
    "encoder.": "a VAE alone, not a whole model",
    "text_model.": "a text encoder alone, not a whole model",
    "emb_params": "a textual inversion, not a whole model",
}


def find_single_file(folder: Path) -> Path | None:
    """Return the one-file checkpoint in a folder, or None if there is none or the folder is in diffusers layout.

    Raises ValueError for several.
    """
    if (folder / "config.json").is_file() or any(folder.glob("unet/*.[sb]*")):
        return None
    found = sorted(folder.glob("[!.]*.safetensors"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise ValueError(f"it holds {len(found)} models, {names}: give the path of one of them")
    return found[0] if found else None


def convert(path: Path) -> Path:
    """Convert a one-file checkpoint to diffusers layout, once, and return the folder in the Hugging Face cache.

    Its name is a hash of the file and of the settings beside it, so that a changed file is another model and a moved
    one is the same. Raises ValueError for a file that is not a complete Stable Diffusion 1, 2 or XL, and OSError if its
    tokenizer is neither beside it nor on the Hub.
    """
    header = _read_header(path)
    _check_header(header)
    settings = _find_settings(path)
    hashes = {name: _hash(file) for name, file in settings.items()}
    key = json.dumps([CONVERSION, _hash(path), hashes], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = Path(constants.HF_HOME) / "single-files" / name
    with locked(folder.with_name(f".{name}.lock")):
        if not (folder / MANIFEST).is_file():
            log.warning("%s is converted to diffusers layout, once", path)
            with replacing_folder(folder) as made:
                _write_settings(path, header, settings, made)
                _write_weights(path, header.version, made)
    return folder


def _hash(path: Path) -> str:
    stat = path.stat()
    return _hash_of(path.absolute(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)  # files have gigabytes, and are hashed several times in a process
def _hash_of(path: Path, _size: int, _mtime_ns: int) -> str:
    return sha256(path)


class _Header(dict[str, tuple[str, list[int]]]):
    """The dtype and shape of each tensor in a safetensors file."""

    metadata: dict[str, str]

    @cached_property
    def version(self) -> sd.Version:
        if any(name.startswith("conditioner.") for name in self):
            return sd.XL
        return sd.V2 if any(name.startswith(sd.OPEN_CLIP) for name in self) else sd.V1


def _read_header(path: Path) -> _Header:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            header = _Header({n: (s.get_dtype(), s.get_shape()) for n, s in slices.items()})
            header.metadata = file.metadata() or {}
            return header
    except SafetensorError as error:
        raise ValueError(
            f"{path.name} is not a complete safetensors file, {error}: copy or download it again"
        ) from error


def _check_header(header: _Header) -> None:
    for prefix, what in REFUSED.items():
        if any(name.startswith(prefix) for name in header):
            raise ValueError(f"it holds {what}")
    texts = {text.prefix: part.replace("_", " ") for part, text in header.version.texts.items()}
    parts = {sd.UNET: "UNet", sd.VAE: "VAE"} | texts
    if missing := [
        what for prefix, what in parts.items() if not any(n.startswith(prefix) for n in header)
    ]:
        raise ValueError(f"it lacks the {missing[0]} of a one-file Stable Diffusion")
    _, shape = header.get(f"{sd.UNET}input_blocks.0.0.weight", ("", [0, 4]))
    if shape[1] != 4:
        raise ValueError(
            f"its UNet takes {shape[1]} channels, as for inpainting, and not the 4 of text to image"
        )
    for name, (dtype, _) in header.items():
        if dtype not in FLOATS and name.startswith((sd.UNET, sd.VAE)):
            raise ValueError(f"its weights are quantised, {dtype}: take the fp16 or fp32 file")


def _find_settings(path: Path) -> dict[str, Path]:
    # files beside the link go before those beside its target
    of_target = _find_settings(path.resolve()) if path.is_symlink() else {}
    folder = path.parent
    found = [folder / f"{part}/config.json" for part in ("unet", "vae", *sd.XL.texts)]
    found += [folder / "scheduler/scheduler_config.json"]
    vocabularies = sorted(folder.glob("tokenizer*/*"))  # tokenizer/ and tokenizer_2/
    found += [path for path in vocabularies if path.suffix in (".json", ".txt")]
    settings = {p.relative_to(folder).as_posix(): p for p in found if p.is_file()}
    if path.with_suffix(".yaml").is_file():
        settings["model.yaml"] = path.with_suffix(".yaml")
    return of_target | settings


def _write_settings(path: Path, header: _Header, settings: dict[str, Path], made: Path) -> None:
    version = header.version
    built_in = {
        "unet/config.json": partial(_without_weights, UNet2DConditionModel, version.unet),
        "vae/config.json": partial(_without_weights, AutoencoderKL, version.vae),
        "scheduler/scheduler_config.json": partial(_scheduler, path, header, settings),
    }
    for part, text in version.texts.items():
        built_in[f"{part}/config.json"] = partial(CLIPTextConfig, **text.config)
    for name in {**settings, **built_in}:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        if name in settings:
            shutil.copyfile(settings[name], made / name)
        else:
            built_in[name]().to_json_file(made / name)
    for part, text in version.texts.items():
        folder = made / part.replace("text_encoder", "tokenizer")
        if not folder.is_dir():
            tokenizer = CLIPTokenizer.from_pretrained(_fetch_tokenizer(path))
            if text.is_open_clip:
                tokenizer.pad_token = "!"  # token 0, with which OpenCLIP pads
            tokenizer.save_pretrained(folder)
    scheduler = read_json(made / "scheduler/scheduler_config.json")["_class_name"]
    write_json(made / "model_index.json", version.index | {"scheduler": ["diffusers", scheduler]})


def _without_weights(kind: type, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return kind.from_config(config)


def _fetch_tokenizer(path: Path) -> str:
    try:
        return snapshot_download(
            TOKENIZER, allow_patterns=["*token*.json", "vocab.json", "merges.txt"]
        )
    except OSError as error:
        raise OSError(
            f"one file holds no tokenizer, and {TOKENIZER}, which has it, was not reached on the hub "
            f"({type(error.__cause__ or error).__name__}): try again later, or put tokenizer/ beside {path.name}"
        ) from error


def _scheduler(path: Path, header: _Header, settings: dict[str, Path]) -> Any:
    kind = header.metadata.get("modelspec.prediction_type", "")
    if "model.yaml" in settings:
        text = settings["model.yaml"].read_text(errors="replace")
        found = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", text, re.M)
        kind = found[1] if found else "eps"
    if "v_pred" in header:
        kind = "v"
    # both prediction types of Stable Diffusion 2 have the same weights
    if not kind and header.version is sd.V2:
        raise ValueError(
            "it is a Stable Diffusion 2 and does not say whether it predicts noise or v: put "
            f"{path.with_suffix('.yaml').name} beside it, or its scheduler/scheduler_config.json"
        )
    if kind.startswith("v"):
        more = {"clip_sample": False, "prediction_type": "v_prediction"}
        if "ztsnr" in header:
            more |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return DDIMScheduler(**sd.SCHEDULE, **more)
    if header.version is sd.XL:
        known = {n: v for n, v in sd.SCHEDULE.items() if n != "set_alpha_to_one"}
        return EulerDiscreteScheduler(**known, timestep_spacing="leading")
    return PNDMScheduler(**sd.SCHEDULE, skip_prk_steps=True)


def _write_weights(path: Path, version: sd.Version, made: Path) -> None:
    tensors = load_file(path)  # memory-mapped
    for part, weights in sd.rename(tensors, sd.empty_models(made, version), version).items():
        name = "model" if part in version.texts else "diffusion_pytorch_model"
        contiguous = {n: t.contiguous() for n, t in weights.items()}
        save_file(contiguous, made / part / f"{name}.safetensors", {"format": "pt"})
