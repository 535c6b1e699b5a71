"""Export a model for other programs: one checkpoint file, as ComfyUI reads it, and a LoRA in two layouts.

Weights keep the values and the dtype that they have in model/. Each file is read back by diffusers' loaders and
compared with model/ before export/ is replaced.
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
    hash_tensors,
    lora_metadata,
    model_metadata,
    original_config,
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
FORMAT = 2  # of export/; an export of another format is written again
TEXT_ENCODER, UNET = "text_encoder.", "unet."


def export(run: Run) -> list[Path]:
    """Write export/ from model/, unless export/ is up to date; return the paths of the weight files.

    NAME.safetensors       the full model as an original Stable Diffusion checkpoint
    NAME.yaml              its config, if the model predicts velocity, which weights alone do not show
    NAME-lora.safetensors  the LoRA in kohya's layout, for ComfyUI and similar programs
    diffusers/             the LoRA for `load_lora_weights` of diffusers alone
    Raises RunError if model/ is missing or corrupt, or a file that was read back differs from it.
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
    family = Family.read(run.model)
    state = original_state(run.model)
    if family.predicts_velocity:  # loaders look for these keys; the tensors are empty
        state["v_pred"] = torch.tensor([])
        if family.has_zero_snr:
            state["ztsnr"] = torch.tensor([])
        write_text(path.with_suffix(".yaml"), original_config(run.model))
    _save(state, path, model_metadata(run, family))


def _write_lora(run: Run, folder: Path) -> None:
    lora, family = read_lora(run.model / "lora" / LORA_FILE), Family.read(run.model)
    metadata, state = lora_metadata(run, family, lora), to_kohya(lora)
    path = folder / f"{run.name}-lora.safetensors"
    _save(state, path, metadata | {"sshs_model_hash": hash_tensors(state)})
    write_lora(folder / "diffusers" / LORA_FILE, lora, metadata)


def _save(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"} | metadata)


def original_state(model: Path) -> State:
    """Return the weights in a pipeline's folder, by their names in an original Stable Diffusion checkpoint."""
    states = {part: load_file(model / part / name) for part, name in WEIGHTS.items()}
    configs = {part: read_json(model / part / "config.json") for part in WEIGHTS}
    text = configs["text_encoder"].get("text_config", configs["text_encoder"])
    if text["hidden_act"] == "gelu":  # OpenCLIP, as in Stable Diffusion 2; CLIP has quick_gelu
        text_encoder = text_encoder_to_openclip(states["text_encoder"])
    else:
        positions = text["max_position_embeddings"]
        text_encoder = text_encoder_to_original(states["text_encoder"], positions)
    return (
        unet_to_original(states["unet"], configs["unet"])
        | vae_to_original(states["vae"], configs["vae"])
        | text_encoder
    )


def to_kohya(lora: Lora) -> dict[str, Tensor]:
    """Return a LoRA in the layout of kohya's sd-scripts: down, up and alpha of each layer.

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
    """Load each exported file with diffusers and compare it with model/. Raises RunError if they differ."""
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
        folder / f"{run.name}-lora.safetensors": to_kohya(lora),
        folder / "diffusers" / LORA_FILE: lora.tensors,
    }
    for path, tensors in layouts.items():  # compared scaled: diffusers has one alpha for all layers
        require_equal(path, tensors.items(), load_file(path).items())
        load_lora(pipeline, path)
        require_equal(path, lora.scaled.items(), extract_lora(parts).scaled.items(), rounded=True)
        pipeline.unload_lora_weights()


def _load(path: Path, config: Path) -> StableDiffusionPipeline:
    """Load a one-file checkpoint in float32, with the configs in the folder `config`."""
    try:
        return StableDiffusionPipeline.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
        )
    except Exception as error:  # loaders raise many kinds
        raise unreadable(path, error) from error
