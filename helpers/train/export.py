"""What training leaves: a pipeline that `DiffusionPipeline.from_pretrained` loads, and the LoRA by itself."""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.device import load_pipeline
from helpers.run import Run
from helpers.store import read_json, replacing_folder, write_json, write_text
from helpers.train.model import Parts

LORA_FILE = "pytorch_lora_weights.safetensors"
CARD = """---
license: creativeml-openrail-m
base_model: {base_model}
pipeline_tag: text-to-image
library_name: diffusers
---

# {run}

{base_model}, fine-tuned ({method}, {max_steps} steps of {batch} images, learning rate {learning_rate:g},
{resolution_px} px, seed {seed}). End a prompt with `{suffix}` for the style.

    from diffusers import DiffusionPipeline
    DiffusionPipeline.from_pretrained("path/to/this/folder")("a prompt{suffix}").images[0].save("picture.png")

Made for study on one artist's work. Do not pass its pictures off as theirs.
"""


def save_model(run: Run, config: TrainConfig, parts: Parts) -> None:
    """Write model/ whole: the base with what was trained in place; a LoRA is merged, and kept in model/lora/."""
    with replacing_folder(run.model) as folder:
        if config.method == "lora":
            pipeline = _with_lora(config, parts, folder / "lora")
        else:
            trained = {"unet": parts.unet}
            if config.train_text_encoder:
                trained["text_encoder"] = parts.text_encoder
            pipeline = load_pipeline(config.base_model, parts.device.dtype, **trained)
            for module in trained.values():  # a model's own to() warns, of nothing
                nn.Module.to(module, parts.device.dtype)
        pipeline.save_pretrained(folder)
        _load_whole(folder)
        write_text(folder / "README.md", _card(run, config))


def _load_whole(folder: Path) -> None:
    """Have all parts of a saved pipeline load in float32 unless another dtype is asked for, as diffusers' own do.

    transformers' load as they were saved, and a text encoder in fp16 beside a UNet in float32 cannot draw.
    """
    for path in folder.glob("*/config.json"):
        config = read_json(path)
        for name in config.keys() & {"dtype", "torch_dtype"}:
            write_json(path, config | {name: "float32"})


def _with_lora(config: TrainConfig, parts: Parts, folder: Path) -> StableDiffusionPipeline:
    trained = {"unet": parts.unet}
    if config.train_text_encoder:
        trained["text_encoder"] = parts.text_encoder
    given = {f"{name}_lora_layers": _lora_of(module) for name, module in trained.items()}
    for name, module in trained.items():  # with alpha, which loaders take for the rank otherwise
        adapter = module.peft_config["default"].to_dict()
        given[f"{name}_lora_adapter_metadata"] = adapter | {
            "base_model_name_or_path": None
        }  # a path
    StableDiffusionPipeline.save_lora_weights(folder, **given)
    pipeline = load_pipeline(config.base_model, parts.device.dtype)
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE, use_safetensors=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return pipeline


def _lora_of(module: nn.Module) -> dict[str, Tensor]:
    trained = convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
    return {name: tensor.contiguous() for name, tensor in trained.items()}  # from channels-last


def _card(run: Run, config: TrainConfig) -> str:
    batch = config.train_batch_size * config.gradient_accumulation_steps
    suffix = run.read_config("dataset")["suffix"]
    return CARD.format(**vars(config) | {"run": run.name, "batch": batch, "suffix": suffix})
