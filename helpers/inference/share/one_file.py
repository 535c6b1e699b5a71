"""The model in the files that other programs read: one for ComfyUI and its like, and a LoRA in both layouts.

Weights keep the values and the dtype that they have in model/. What is written is read back by diffusers' own loaders
and compared before it takes its place.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.core.errors import RunError
from helpers.core.files import (
    find_corruption,
    folder_hash,
    read_json,
    replacing_folder,
    write_json,
    write_text,
)
from helpers.core.run import Run
from helpers.inference.share.modelspec import (
    Family,
    lora_metadata,
    model_metadata,
    original_config,
    tensors_hash,
)
from helpers.inference.share.original_names import (
    State,
    text_encoder_to_openclip,
    text_encoder_to_original,
    unet_to_original,
    vae_to_original,
)
from helpers.models.lora import (
    DOWN,
    LORA_FILE,
    UP,
    Lora,
    extract_lora,
    load_lora,
    read_lora,
    write_lora,
)
from helpers.models.readback import effective_weights, require_equal, unreadable

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
MADE_FROM = "made_from.json"
FORMAT = 2  # of these files; what an older version wrote is written anew
TEXT_ENCODER, UNET = "text_encoder.", "unet."


def export(run: Run) -> list[Path]:
    """Write export/ from model/ unless it is there already; return its weight files.

    NAME.safetensors       the whole model as an original Stable Diffusion checkpoint
    NAME.yaml              beside it where the model predicts velocity, which no weights tell
    NAME-lora.safetensors  a LoRA in kohya's layout, for ComfyUI and its like
    diffusers/             the same for `load_lora_weights`; no other program reads it
    Raises RunError if model/ is damaged or was not trained yet, or a file that was read back is not model/'s.
    """
    run.require(run.verdict, "train")
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    made_from = {"model": folder_hash(run.model), "format": FORMAT}
    if find_corruption(run.export) or read_json(run.export / MADE_FROM) != made_from:
        with replacing_folder(run.export) as folder:
            _write_model(run, folder / f"{run.name}.safetensors")
            if (run.model / "lora" / LORA_FILE).is_file():
                _write_lora(run, folder)
            _read_back(run, folder)
            write_json(folder / MADE_FROM, made_from)
    return sorted(run.export.rglob("*.safetensors"))


def _write_model(run: Run, path: Path) -> None:
    family = Family.of(run.model)
    state = original(run.model)
    if family.predicts_velocity:  # keys that loaders look for; the tensors are empty
        state["v_pred"] = torch.tensor([])
        if family.has_zero_snr:
            state["ztsnr"] = torch.tensor([])
        write_text(path.with_suffix(".yaml"), original_config(run.model))
    _save(state, path, model_metadata(run, family))


def _write_lora(run: Run, folder: Path) -> None:
    lora, family = read_lora(run.model / "lora" / LORA_FILE), Family.of(run.model)
    told = lora_metadata(run, family, lora)
    known_by = {"sshs_model_hash": tensors_hash(kohya(lora))}
    _save(kohya(lora), folder / f"{run.name}-lora.safetensors", told | known_by)
    write_lora(folder / "diffusers" / LORA_FILE, lora, told)


def _save(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"} | metadata)


def original(model: Path) -> State:
    """All weights of a pipeline's folder by their names in an original Stable Diffusion checkpoint."""
    states = {part: load_file(model / part / name) for part, name in WEIGHTS.items()}
    configs = {part: read_json(model / part / "config.json") for part in WEIGHTS}
    text = configs["text_encoder"].get("text_config", configs["text_encoder"])
    if text["hidden_act"] == "gelu":  # OpenCLIP's, of Stable Diffusion 2; CLIP's is quick_gelu
        words = text_encoder_to_openclip(states["text_encoder"])
    else:
        positions = text["max_position_embeddings"]
        words = text_encoder_to_original(states["text_encoder"], positions)
    return (
        unet_to_original(states["unet"], configs["unet"])
        | vae_to_original(states["vae"], configs["vae"])
        | words
    )


def kohya(lora: Lora) -> dict[str, Tensor]:
    """A LoRA in the layout of kohya's sd-scripts: three tensors a layer, the third its alpha.

    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha
    """
    converted = {}
    for name, alpha in lora.alpha.items():
        layer = name.replace(TEXT_ENCODER, "lora_te.", 1).replace(UNET, "lora_unet.", 1)
        layer = layer.replace(".", "_")
        converted[f"{layer}.lora_down.weight"] = lora.tensors[name + DOWN]
        converted[f"{layer}.lora_up.weight"] = lora.tensors[name + UP]
        converted[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return converted


def _read_back(run: Run, folder: Path) -> None:
    """Compare each file, as diffusers' loaders read it, with model/. Raises RunError that names what differs."""
    path = folder / f"{run.name}.safetensors"
    pipeline = _load(path, run.model)
    for part, name in WEIGHTS.items():
        state = load_file(run.model / part / name).items()
        expected = ((name.removeprefix("text_model."), tensor) for name, tensor in state)
        require_equal(path, expected, effective_weights(getattr(pipeline, part)))
    if not (run.model / "lora" / LORA_FILE).is_file():
        return
    lora = read_lora(run.model / "lora" / LORA_FILE)
    parts = {part: getattr(pipeline, part) for part in lora.parts}
    layouts = {
        folder / f"{run.name}-lora.safetensors": kohya(lora),
        folder / "diffusers" / LORA_FILE: lora.tensors,
    }
    for path, tensors in layouts.items():  # diffusers takes one alpha for all layers
        require_equal(path, tensors.items(), load_file(path).items())
        load_lora(pipeline, path)
        require_equal(path, lora.scaled.items(), extract_lora(parts).scaled.items(), rounded=True)
        pipeline.unload_lora_weights()


def _load(path: Path, config: Path) -> StableDiffusionPipeline:
    """A one-file checkpoint in float32, of the shapes that model/ has."""
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
        )
    except Exception as error:  # whatever the loader stumbles over
        raise unreadable(path, error) from error
