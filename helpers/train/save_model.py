"""What training leaves: a pipeline that `DiffusionPipeline.from_pretrained` loads, and the LoRA by itself.

Each file is written, read back by its own loader in modules that share nothing with training, and compared with
what was trained before it takes its place.
"""

import logging
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import ModelCardData
from torch import nn

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json, write_text
from helpers.core.run import Run
from helpers.models.licence import licence_of, public_name
from helpers.models.lora import LORA_FILE, extract_lora, load_lora, write_lora
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import effective_weights, final_path, require_equal, require_names
from helpers.models.untrusted import open_model
from helpers.train.model import ModelComponents
from helpers.train.portable import write_text_encoder_names, write_tokenizer

log = logging.getLogger(__name__)
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
UNCHECKED = {  # neither training nor what is written of it needs a safety checker's gigabyte
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
CHECKER = {  # copied as files, under classes that every version has
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}
CARD = """---
{header}
---

# {run}

{base}, fine-tuned ({method}, {max_steps} steps of {batch} images, learning rate {learning_rate:g},
{resolution_px} px, seed {seed}). {style}

    from diffusers import DiffusionPipeline
    DiffusionPipeline.from_pretrained("path/to/this/folder")("a prompt{suffix}").images[0].save("picture.png")

Made for study on one artist's work. Do not pass its pictures off as theirs. Licence: {licence}, as the base's.
"""


def trained_modules(config: TrainConfig, components: ModelComponents) -> dict[str, nn.Module]:
    """What was trained, by its name in a pipeline."""
    trained: dict[str, nn.Module] = {"unet": components.unet}
    if config.train_text_encoder:
        trained["text_encoder"] = components.text_encoder
    return trained


def fine_tuned(config: TrainConfig, components: ModelComponents) -> StableDiffusionPipeline:
    """The base's pipeline with the modules that were trained, or whose frozen copies are at hand, in place."""
    at_hand = {
        "unet": components.unet,
        "text_encoder": components.text_encoder,
        "vae": components.vae,
    }
    return load_pipeline(
        config.base_model,
        components.device.dtype,
        tokenizer=components.tokenizer,
        **at_hand,
        **UNCHECKED,
    )


def lora_on_its_base(
    config: TrainConfig, components: ModelComponents, folder: Path
) -> StableDiffusionPipeline:
    """Write the LoRA's file into `folder`, and load it onto the base as a user would: a pipeline in float32.

    Raises RunError that names the layers in which it differs from what was trained.
    """
    path, modules = folder / LORA_FILE, trained_modules(config, components)
    trained = extract_lora(modules)
    write_lora(path, trained, {})
    require_names(path, trained.tensors.items())
    pipeline = load_pipeline(
        config.base_model, torch.float32, tokenizer=components.tokenizer, **UNCHECKED
    )
    load_lora(pipeline, path)
    loaded = extract_lora({name: getattr(pipeline, name) for name in modules})
    require_equal(path, trained.scaled.items(), loaded.scaled.items(), rounded=True)
    return pipeline.to(components.device.device)


def merge_lora(pipeline: StableDiffusionPipeline) -> None:
    """Add a loaded LoRA to the weights that it changes."""
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def save_pipeline(
    config: TrainConfig,
    components: ModelComponents,
    pipeline: StableDiffusionPipeline,
    folder: Path,
) -> None:
    """Write a pipeline in the device's dtype, so that the newest loaders and those of 2024 read it alike."""
    for name in WEIGHTS:  # a model's own to() warns, of nothing
        nn.Module.to(getattr(pipeline, name), components.device.dtype)
    pipeline.save_pretrained(folder)
    write_tokenizer(components.tokenizer, folder / "tokenizer")
    write_text_encoder_names(folder / "text_encoder" / WEIGHTS["text_encoder"])
    _copy_safety_checker(config.base_model, folder)
    for path in (*folder.glob("*/*config.json"), folder / "model_index.json"):
        _clean(path)


def _copy_safety_checker(base_model: str, folder: Path) -> None:
    """Copy the base's safety checker, where it has one in safetensors; it is not loaded."""
    with open_model("base_model", base_model, "put back the base model") as base:
        index = read_json(base / "model_index.json")
        if not (index.get("safety_checker") or [None])[0]:
            return
        weights = sorted(
            (base / "safety_checker").glob("model*.safetensors"), key=lambda p: len(p.name)
        )
        processor = base / "feature_extractor/preprocessor_config.json"
        if not weights or not processor.is_file():
            log.warning(
                "the base's safety checker is not taken over: it has no safetensors, or no feature_extractor"
            )
            return
        for part in CHECKER:
            (folder / part).mkdir()
        shutil.copyfile(weights[0], folder / "safety_checker/model.safetensors")
        shutil.copyfile(base / "safety_checker/config.json", folder / "safety_checker/config.json")
        shutil.copyfile(processor, folder / "feature_extractor" / processor.name)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json", index | CHECKER | {"requires_safety_checker": True})


def _clean(path: Path) -> None:
    """Take a path out of a config, and have its part load in float32 unless asked otherwise, as diffusers' own do.

    transformers' load as they were saved, and a text encoder in fp16 beside a UNet in float32 cannot draw.
    """
    config = read_json(path)
    cleaned = {name: value for name, value in config.items() if name != "_name_or_path"}
    for name in cleaned.keys() & {"dtype", "torch_dtype"}:
        cleaned[name] = "float32"
    if cleaned != config:
        write_json(path, cleaned)


def read_back(
    config: TrainConfig, components: ModelComponents, folder: Path
) -> StableDiffusionPipeline:
    """Load a written model/ as a user would, and compare each weight with the one that training holds.

    Raises RunError that names the layers which differ.
    """
    modules = {
        "unet": components.unet,
        "text_encoder": components.text_encoder,
        "vae": components.vae,
    }
    for name, file in WEIGHTS.items():
        require_names(folder / name / file, effective_weights(modules[name]))
    pipeline = load_pipeline(str(folder), components.device.dtype, **UNCHECKED)
    for name, file in WEIGHTS.items():
        loaded = effective_weights(getattr(pipeline, name))
        merged = config.method == "lora" and name in trained_modules(config, components)
        require_equal(folder / name / file, effective_weights(modules[name]), loaded, merged)
    if pipeline.tokenizer.get_vocab() != components.tokenizer.get_vocab():
        raise RunError(
            f"{final_path(folder / 'tokenizer')} does not hold the base's words: run 04 again"
        )
    return pipeline.to(components.device.device)


def write_card(run: Run, config: TrainConfig, components: ModelComponents, folder: Path) -> None:
    """A card for a pipeline that leaves without the report; 05 writes the whole one."""
    is_v2 = bool(components.unet.config.use_linear_projection)
    licence = licence_of(config.base_model, is_v2)
    header = ModelCardData(
        **licence.fields(), pipeline_tag="text-to-image", library_name="diffusers"
    )
    suffix = run.read_config("dataset")["suffix"]
    told = {
        "header": header.to_yaml(),
        "licence": licence.name,
        "run": run.name,
        "base": public_name(config.base_model),
        "batch": config.effective_batch_size,
        "suffix": suffix,
        "style": f"End a prompt with `{suffix}` for the style."
        if suffix
        else "It needs no suffix.",
    }
    write_text(folder / "README.md", CARD.format(**vars(config) | told))
