"""Export the model as a folder that `DiffusionPipeline.from_pretrained` loads, and the LoRA as a separate file.

Each file is read back by its own loader, into modules that share nothing with training, and compared with the trained
weights before it replaces an older one.
"""

import logging
import shutil
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCardData
from torch import nn

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json, write_text
from helpers.core.run import Run
from helpers.models.families import weights_file
from helpers.models.licence import licence_of, public_name
from helpers.models.lora import LORA_FILE, extract_lora, load_lora, write_lora
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import effective_weights, final_path, require_equal, require_names
from helpers.models.untrusted import open_model
from helpers.train.model import ModelComponents
from helpers.train.portable import write_text_encoder_names, write_tokenizer

log = logging.getLogger(__name__)
# of a denoiser whose float32 copy fits Colab's 12.7 GB beside another
MAX_FLOAT32_PARAMETERS = 1.5e9
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
    """Return the trained modules by component name: the denoiser, and the text encoders if they are trained."""
    encoders = components.text_encoders if config.train_text_encoder else {}
    return {components.family.DENOISER[0]: components.denoiser} | encoders


def finetuned_pipeline(config: TrainConfig, components: ModelComponents) -> DiffusionPipeline:
    """Return the base model's pipeline with the models and tokenizers from `components`."""
    own = components.modules | components.tokenizers
    return load_pipeline(config.base_model, components.device.dtype, safety_checker=False, **own)


def export_lora(
    config: TrainConfig, components: ModelComponents, folder: Path
) -> DiffusionPipeline:
    """Write the LoRA file into `folder`, and return the base model's pipeline with that file loaded.

    Raises RunError, naming the layers, if the loaded LoRA differs from the trained one.
    """
    path, modules = folder / LORA_FILE, trained_modules(config, components)
    trained = extract_lora(modules)
    write_lora(path, trained, {})
    require_names(path, trained.tensors.items())
    dtype = torch.float32
    if sum(p.numel() for p in components.denoiser.parameters()) > MAX_FLOAT32_PARAMETERS:
        # as its files have it, so that it is mapped and takes no memory
        dtype = components.device.dtype
    own = components.tokenizers | ({"vae": components.vae} if config.vae else {})
    pipeline = load_pipeline(config.base_model, dtype, safety_checker=False, **own)
    load_lora(pipeline, path)
    scaled = extract_lora({name: getattr(pipeline, name) for name in modules}).scaled
    loaded = ((name, tensor.to(dtype)) for name, tensor in scaled.items())
    require_equal(path, trained.scaled.items(), loaded, rounded=True)
    return pipeline


def save_pipeline(
    config: TrainConfig, components: ModelComponents, pipeline: DiffusionPipeline, folder: Path
) -> None:
    """Save a pipeline in the device's dtype, in files that both transformers 4 and 5 can load."""
    for name in components.modules:  # the model's own to() warns without cause
        nn.Module.to(getattr(pipeline, name), components.device.dtype)
    pipeline.save_pretrained(folder, max_shard_size="50GB")
    for name, tokenizer in components.tokenizers.items():
        write_tokenizer(tokenizer, folder / name)
    for name in components.text_encoders:
        write_text_encoder_names(folder / name / weights_file(name))
    _copy_safety_checker(config.base_model, folder)
    for path in (*folder.glob("*/*config.json"), folder / "model_index.json"):
        _clean_config(path)


def _copy_safety_checker(base_model: str, folder: Path) -> None:
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
    config = read_json(path)
    # `_name_or_path` is a path of this machine
    cleaned = {name: value for name, value in config.items() if name != "_name_or_path"}
    for name in cleaned.keys() & {"dtype", "torch_dtype"}:
        cleaned[name] = "float32"
    if cleaned != config:
        write_json(path, cleaned)


def read_back(config: TrainConfig, components: ModelComponents, folder: Path) -> DiffusionPipeline:
    """Load the written model/ folder as a pipeline. Raises RunError if a weight differs from the trained one."""
    files = {name: folder / name / weights_file(name) for name in components.modules}
    for name, module in components.modules.items():
        require_names(files[name], effective_weights(module))
    pipeline = load_pipeline(str(folder), components.device.dtype, safety_checker=False)
    for name, module in components.modules.items():
        loaded = effective_weights(getattr(pipeline, name))
        merged = config.method == "lora" and name in trained_modules(config, components)
        require_equal(files[name], effective_weights(module), loaded, merged)
    for name, tokenizer in components.tokenizers.items():
        if getattr(pipeline, name).get_vocab() != tokenizer.get_vocab():
            raise RunError(
                f"{final_path(folder / name)} does not have the base's vocabulary: run 04_train again"
            )
    return pipeline


def write_card(run: Run, config: TrainConfig, components: ModelComponents, folder: Path) -> None:
    """Write a short model card, which 05_inference replaces by the full card."""
    licence = licence_of(config.base_model, components.family)
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
