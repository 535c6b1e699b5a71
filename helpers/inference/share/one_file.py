"""Export a model for other programs: one checkpoint file, as ComfyUI reads it, and a LoRA in two layouts.

Weights keep the values and the dtype that they have in model/. Each file is read back by diffusers' loaders and
compared with model/ before export/ is replaced.
"""

import hashlib
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save, save_file

from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, read_json, replacing_folder, write_json
from helpers.core.run import Run
from helpers.inference.share.modelspec import Family, lora_metadata, model_metadata, original_config
from helpers.inference.share.original_names import WEIGHTS, State, original_state, to_kohya
from helpers.models.lora import LORA_FILE, extract_lora, load_lora, read_lora, write_lora
from helpers.models.readback import effective_weights, require_equal, unreadable

MADE_FROM = "made_from.json"
FORMAT = 2  # of export/; an export of another format is written again


def export(run: Run) -> list[Path]:
    """Write export/ from model/, unless export/ is up to date. Return the paths of the weight files.

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
        path.with_suffix(".yaml").write_text(original_config(run.model), encoding="utf-8")
    _save(state, path, model_metadata(run, family))


def _write_lora(run: Run, folder: Path) -> None:
    lora, family = read_lora(run.model / "lora" / LORA_FILE), Family.read(run.model)
    metadata, state = lora_metadata(run, family, lora), to_kohya(lora)
    content = save(state)  # model sites identify a LoRA by the hash of its data after the header
    data = content[8 + int.from_bytes(content[:8], "little") :]
    named = metadata | {"sshs_model_hash": hashlib.sha256(data).hexdigest()}
    _save(state, folder / f"{run.name}-lora.safetensors", named)
    write_lora(folder / "diffusers" / LORA_FILE, lora, metadata)


def _save(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"} | metadata)


def _read_back(run: Run, folder: Path) -> None:
    """Load each exported file with diffusers, and compare it with model/. Raises RunError if they differ."""
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
