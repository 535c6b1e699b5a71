"""Export a model for other programs: as one checkpoint file (for ComfyUI and others), and as a LoRA in two layouts.

Weights keep the values and the dtype that they have in model/. Each file is read back by diffusers' loaders and
compared with model/ before export/ is replaced.
"""

import hashlib
import logging
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save, save_file

from helpers.core.errors import RunError
from helpers.core.files import (
    find_corruption,
    folder_bytes,
    folder_hash,
    read_json,
    replacing_folder,
    write_json,
)
from helpers.core.run import Run
from helpers.inference.share.modelspec import (
    Variant,
    lora_metadata,
    model_metadata,
    original_config,
)
from helpers.models.families import Family, State, weights_file
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
from helpers.models.pipeline import files_dtype, load_pipeline
from helpers.models.readback import effective_weights, require_equal, unreadable

log = logging.getLogger(__name__)
MADE_FROM = "made_from.json"
FORMAT = 3  # of export/; an export of another format is written again
MAX_BYTES = 5e9  # of a model that is written as one file beside its LoRA, unless one_file says so


def export(run: Run, one_file: str = "auto") -> list[Path]:
    """Write export/ from model/, unless export/ is up to date. Return the paths of the weight files.

    NAME.safetensors       the full model as an original Stable Diffusion checkpoint
    NAME.yaml              its config, if the model predicts velocity, which weights alone do not show
    NAME-lora.safetensors  the LoRA in kohya's layout, for ComfyUI and similar programs
    NAME-lora-blocks.safetensors  of SDXL, with diffusers' names of blocks, which some programs look for
    diffusers/             the LoRA for `load_lora_weights` of diffusers alone
    `one_file` is "yes", "no" or "auto": without the first for a LoRA whose model is larger than MAX_BYTES.
    Raises RunError if model/ is missing or corrupt, or a file that was read back differs from it.
    """
    run.require(run.verdict, "train")
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    has_lora = (run.model / "lora" / LORA_FILE).is_file()
    is_large = has_lora and folder_bytes(run.model) > MAX_BYTES
    whole = one_file == "yes" or not has_lora or (one_file == "auto" and not is_large)
    made_from = {"model": folder_hash(run.model), "format": FORMAT, "one_file": whole}
    if find_corruption(run.export) or read_json(run.export / MADE_FROM) != made_from:
        with replacing_folder(run.export) as folder:
            if whole:
                _write_model(run, folder / f"{run.name}.safetensors")
            if has_lora:
                _write_lora(run, folder)
            _read_back(run, folder)
            write_json(folder / MADE_FROM, made_from)
    if not whole:
        log.warning(
            "the whole model as one file, of %.1f GB, is left out, as the LoRA is enough: more = "
            '{"one_file": "yes"} writes it too',
            folder_bytes(run.model) / 1e9,
        )
    return sorted(run.export.rglob("*.safetensors"))


def _write_model(run: Run, path: Path) -> None:
    variant = Variant.read(run.model)
    state = original_state(run.model)
    if variant.predicts_velocity:  # loaders look for these keys; the tensors are empty
        state["v_pred"] = torch.tensor([])
        if variant.has_zero_snr:
            state["ztsnr"] = torch.tensor([])
        if variant.family.ORIGINAL_TEXT:
            path.with_suffix(".yaml").write_text(original_config(variant), encoding="utf-8")
    _save(state, path, model_metadata(run, variant))


def original_state(model: Path) -> State:
    """Return the weights in a pipeline's folder by their names in an original checkpoint of its family."""
    variant = Variant.read(model)
    states = {name: load_file(path) for name, path in _weight_files(model, variant).items()}
    return variant.family.to_original(states, variant.settings)


def _weight_files(model: Path, variant: Variant) -> dict[str, Path]:
    family = variant.family
    names = (family.DENOISER[0], "vae", *family.TEXT_ENCODERS)
    return {name: model / name / weights_file(name) for name in names}


def _write_lora(run: Run, folder: Path) -> None:
    lora, variant = read_lora(run.model / "lora" / LORA_FILE), Variant.read(run.model)
    metadata = lora_metadata(run, variant, lora)
    for name, state in _layouts(run, lora, variant).items():
        content = save(
            state
        )  # model sites identify a LoRA by the hash of its data after the header
        data = content[8 + int.from_bytes(content[:8], "little") :]
        named = metadata | {"sshs_model_hash": hashlib.sha256(data).hexdigest()}
        _save(state, folder / name, named)
    write_lora(folder / "diffusers" / LORA_FILE, lora, metadata)


def _layouts(run: Run, lora: Lora, variant: Variant) -> dict[str, State]:
    """Return the LoRA in kohya's layout by file name, once for each of the family's namings."""
    first, *others = to_kohya(lora, variant)
    blocks = {f"{run.name}-lora-blocks.safetensors": state for state in others}
    return {f"{run.name}-lora.safetensors": first} | blocks


def to_kohya(lora: Lora, variant: Variant) -> list[State]:
    """Return a LoRA in the layout of kohya's sd-scripts, down, up and alpha of each layer, once for each naming.

    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha
    """
    names = {layer: variant.family.to_kohya(layer, variant.settings) for layer in lora.alpha}
    converted = []
    for number in range(max(map(len, names.values()))):
        converted.append(state := {})
        for layer, alpha in lora.alpha.items():
            name = names[layer][min(number, len(names[layer]) - 1)]
            state[f"{name}.lora_down.weight"] = lora.tensors[layer + DOWN]
            state[f"{name}.lora_up.weight"] = lora.tensors[layer + UP]
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return converted


def _save(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"} | metadata)


def _read_back(run: Run, folder: Path) -> None:
    path, variant = folder / f"{run.name}.safetensors", Variant.read(run.model)
    weights = _weight_files(run.model, variant)
    dtype = files_dtype(weights[variant.family.DENOISER[0]])
    if path.is_file():
        pipeline = _load(path, run.model, variant.family, dtype)
        for part, file in weights.items():
            state = load_file(file).items()
            expected = ((name.removeprefix("text_model."), tensor) for name, tensor in state)
            require_equal(path, expected, effective_weights(getattr(pipeline, part)))
    else:
        pipeline = load_pipeline(str(run.model), dtype, safety_checker=False)
    if not (run.model / "lora" / LORA_FILE).is_file():
        return
    lora = read_lora(run.model / "lora" / LORA_FILE)
    parts = {part: getattr(pipeline, part) for part in lora.parts}
    layouts = {folder / name: state for name, state in _layouts(run, lora, variant).items()}
    layouts[folder / "diffusers" / LORA_FILE] = lora.tensors
    for path, tensors in layouts.items():  # compared scaled: diffusers has one alpha for all layers
        require_equal(path, tensors.items(), load_file(path).items())
        load_lora(pipeline, path)
        loaded = ((name, tensor.to(dtype)) for name, tensor in extract_lora(parts).scaled.items())
        require_equal(path, lora.scaled.items(), loaded, rounded=True)
        pipeline.unload_lora_weights()


def _load(path: Path, config: Path, family: Family, dtype: torch.dtype) -> DiffusionPipeline:
    try:
        return family.PIPELINE.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=dtype,
            **family.PIPELINE_OPTIONS | family.NO_SAFETY_CHECKER,
        )
    except Exception as error:  # loaders raise many kinds
        raise unreadable(path, error) from error
