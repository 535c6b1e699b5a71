"""Export the model as a folder that `DiffusionPipeline.from_pretrained` loads, and the LoRA as a separate file.

Each file is read back by its own loader, into modules that share nothing with training, and compared with the trained
weights before it replaces an older one.
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
from helpers.train.model import NO_SAFETY_CHECKER, ModelComponents
from helpers.train.portable import write_text_encoder_names, write_tokenizer

log = logging.getLogger(__name__)
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
SAFETY_CHECKER = {  # copied as files, under classes that every version has
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
    """Return the trained modules by component name: the UNet, and the text encoder if it is trained."""
    trained: dict[str, nn.Module] = {"unet": components.unet}
    if config.train_text_encoder:
        trained["text_encoder"] = components.text_encoder
    return trained


def finetuned_pipeline(config: TrainConfig, components: ModelComponents) -> StableDiffusionPipeline:
    """Return the base model's pipeline with the tokenizer, text encoder, VAE and UNet from `components`."""
    own = {name: getattr(components, name) for name in ("tokenizer", *WEIGHTS)} | NO_SAFETY_CHECKER
    return load_pipeline(config.base_model, components.device.dtype, **own)


def export_lora(
    config: TrainConfig, components: ModelComponents, folder: Path
) -> StableDiffusionPipeline:
    """Write the LoRA file into `folder`, and return the base model's float32 pipeline with that file loaded.

    Raises RunError, naming the layers, if the loaded LoRA differs from the trained one.
    """
    path, modules = folder / LORA_FILE, trained_modules(config, components)
    trained = extract_lora(modules)
    write_lora(path, trained, {})
    require_names(path, trained.tensors.items())
    pipeline = load_pipeline(
        config.base_model, torch.float32, tokenizer=components.tokenizer, **NO_SAFETY_CHECKER
    )
    load_lora(pipeline, path)
    loaded = extract_lora({name: getattr(pipeline, name) for name in modules})
    require_equal(path, trained.scaled.items(), loaded.scaled.items(), rounded=True)
    return pipeline.to(components.device.device)


def save_pipeline(
    config: TrainConfig,
    components: ModelComponents,
    pipeline: StableDiffusionPipeline,
    folder: Path,
) -> None:
    """Save a pipeline in the device's dtype, in files that both transformers 4 and 5 can load."""
    for name in WEIGHTS:  # the model's own to() warns without cause
        nn.Module.to(getattr(pipeline, name), components.device.dtype)
    pipeline.save_pretrained(folder)
    write_tokenizer(components.tokenizer, folder / "tokenizer")
    write_text_encoder_names(folder / "text_encoder" / WEIGHTS["text_encoder"])
    _copy_safety_checker(config.base_model, folder)
    for path in (*folder.glob("*/*config.json"), folder / "model_index.json"):
        _clean_config(path)


def _copy_safety_checker(base_model: str, folder: Path) -> None:
    """Copy the files of the base model's safety checker to `folder` if the checker's weights are safetensors."""
    with open_model("base_model", base_model, "put back the base model") as base:
        index = read_json(base / "model_index.json")
        if not (index.get("safety_checker") or [None])[0]:
            return
        weights = list((base / "safety_checker").glob("model*.safetensors"))
        processor = base / "feature_extractor/preprocessor_config.json"
        if not weights or not processor.is_file():
            log.warning(
                "the base's safety checker is not copied: it has no safetensors, or no feature_extractor"
            )
            return
        for part in SAFETY_CHECKER:
            (folder / part).mkdir()
        shortest = min(weights, key=lambda path: len(path.name))
        shutil.copyfile(shortest, folder / "safety_checker/model.safetensors")
        shutil.copyfile(base / "safety_checker/config.json", folder / "safety_checker/config.json")
        shutil.copyfile(processor, folder / "feature_extractor" / processor.name)
    index = folder / "model_index.json"
    write_json(index, read_json(index) | SAFETY_CHECKER | {"requires_safety_checker": True})


def _clean_config(path: Path) -> None:
    """Remove a local path from a component's config, and set its dtype to float32, as for diffusers' models."""
    config = read_json(path)
    cleaned = {name: value for name, value in config.items() if name != "_name_or_path"}
    for name in cleaned.keys() & {"dtype", "torch_dtype"}:
        cleaned[name] = "float32"
    if cleaned != config:
        write_json(path, cleaned)


def read_back(
    config: TrainConfig, components: ModelComponents, folder: Path
) -> StableDiffusionPipeline:
    """Load the written model/ folder as a pipeline. Raises RunError if a weight differs from the trained one."""
    modules = {name: getattr(components, name) for name in WEIGHTS}
    for name, file in WEIGHTS.items():
        require_names(folder / name / file, effective_weights(modules[name]))
    pipeline = load_pipeline(str(folder), components.device.dtype, **NO_SAFETY_CHECKER)
    for name, file in WEIGHTS.items():
        loaded = effective_weights(getattr(pipeline, name))
        merged = config.method == "lora" and name in trained_modules(config, components)
        require_equal(folder / name / file, effective_weights(modules[name]), loaded, merged)
    if pipeline.tokenizer.get_vocab() != components.tokenizer.get_vocab():
        raise RunError(
            f"{final_path(folder / 'tokenizer')} does not have the base's vocabulary: run 04_train again"
        )
    return pipeline.to(components.device.device)


def write_card(run: Run, config: TrainConfig, components: ModelComponents, folder: Path) -> None:
    """Write a short model card, which 05_inference replaces by the full card."""
    licence = licence_of(config.base_model, bool(components.unet.config.use_linear_projection))
    tags = {"pipeline_tag": "text-to-image", "library_name": "diffusers"}
    suffix = run.read_config("dataset")["suffix"]
    style = f"End a prompt with `{suffix}` for the style." if suffix else "It needs no suffix."
    values = {
        "header": ModelCardData(**licence.fields(), **tags).to_yaml(),
        "licence": licence.name,
        "run": run.name,
        "base": public_name(config.base_model),
        "batch": config.effective_batch_size,
        "suffix": suffix,
        "style": style,
    }
    write_text(folder / "README.md", CARD.format(**vars(config) | values))
