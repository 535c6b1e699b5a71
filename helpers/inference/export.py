"""The model in the files that other programs read: one for ComfyUI and its like, and the LoRA in both layouts.

Weights keep the values and the dtype they have in model/. The files' metadata name the kind of model and
nothing else: no path, no caption, no setting.
"""

from pathlib import Path

from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.errors import RunError
from helpers.inference.layout import (
    State,
    text_encoder_to_original,
    unet_to_original,
    vae_to_original,
)
from helpers.run import Run
from helpers.store import damage, folder_hash, read_json, replacing_folder, write_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
LORA = "lora/pytorch_lora_weights.safetensors"
MADE_FROM = "made_from.json"


def export(run: Run) -> list[Path]:
    """Write export/ from model/ unless it is there already; return its weight files.

    NAME.safetensors                 the whole model as an original Stable Diffusion v1 checkpoint
    NAME-lora.safetensors            a LoRA in kohya's layout, for ComfyUI and its like
    NAME-lora-diffusers.safetensors  the same for `load_lora_weights`
    Raises RunError if model/ is damaged or was not trained yet.
    """
    run.require(run.verdict, "train")
    if what := damage(run.model):
        raise RunError(f"{what}: run 04_train again")
    made_from = {"model": folder_hash(run.model)}
    if damage(run.export) or read_json(run.export / MADE_FROM) != made_from:
        with replacing_folder(run.export) as folder:
            _save(original(run.model), folder / f"{run.name}.safetensors")
            if (run.model / LORA).is_file():
                lora = load_file(run.model / LORA)
                _save(lora, folder / f"{run.name}-lora-diffusers.safetensors")
                _save(kohya(lora), folder / f"{run.name}-lora.safetensors")
            write_json(folder / MADE_FROM, made_from)
    return sorted(run.export.glob("*.safetensors"))


def _save(state: State, path: Path) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"format": "pt"})


def original(model: Path) -> State:
    """All weights of a pipeline's folder by their names in an original Stable Diffusion v1 checkpoint."""
    unet, vae, text = (model / part for part in ("unet", "vae", "text_encoder"))
    positions = read_json(text / "config.json")
    positions = positions.get("text_config", positions)["max_position_embeddings"]
    return (
        unet_to_original(load_file(unet / WEIGHTS), read_json(unet / "config.json"))
        | vae_to_original(load_file(vae / WEIGHTS), read_json(vae / "config.json"))
        | text_encoder_to_original(load_file(text / "model.safetensors"), positions)
    )


def kohya(lora: State) -> dict[str, Tensor]:
    """A LoRA's weights in the layout of kohya's sd-scripts, each layer with its alpha, which is its rank here."""
    as_peft = {
        name.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B."): tensor
        for name, tensor in lora.items()
    }
    converted = convert_state_dict_to_kohya(as_peft)
    return {k: v.float() if k.endswith(".alpha") else v for k, v in converted.items()}
