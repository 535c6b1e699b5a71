"""Export a model for other programs: as one checkpoint file (for ComfyUI and others), and as LoRAs in two layouts.

Weights keep the values and the dtype that they have in model/. Each file is read back by diffusers' loaders and
compared with model/ before export/ is replaced.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save, save_file

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, read_json, replacing_folder, write_json
from helpers.core.run import Run
from helpers.inference.draw.sampler import Sampler
from helpers.inference.share.modelspec import (
    Variant,
    lora_metadata,
    model_metadata,
    original_config,
)
from helpers.models.families import Family, State, weights_file
from helpers.models.light_lora import LightLora
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
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import effective_weights, require_equal, unreadable

MADE_FROM = "made_from.json"
FORMAT = 2  # of export/; an export of another format is written again


def export(
    run: Run, config: InferenceConfig | None = None, sampler: Sampler | None = None
) -> list[Path]:
    """Write export/ from model/, unless export/ is up to date. Return the paths of the weight files.

    NAME.safetensors              the full model as an original Stable Diffusion checkpoint, if `export_whole`
    NAME.yaml                     its config, if the model predicts velocity, which weights alone do not show
    NAME-lora.safetensors         the LoRA in kohya's layout, for ComfyUI and similar programs
    diffusers/                    the LoRA for `load_lora_weights` of diffusers alone
    NAME-lora-rank32.safetensors  the light LoRA that `config` asks for, and diffusers-rank32/
    sampler                       makes the light LoRA
    Raises RunError if model/ is missing or corrupt, or a file that was read back differs from it.
    """
    config = config or InferenceConfig(run=run.name)
    run.require(run.verdict, "train")
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    made_from = {"model": folder_hash(run.model), "format": FORMAT}
    if config.has_light_lora or not config.export_whole:
        made_from["light_lora"] = [config.lora_rank, config.lora_share, config.export_whole]
    if find_corruption(run.export) or read_json(run.export / MADE_FROM) != made_from:
        light = sampler.light_lora(config) if sampler else None
        with replacing_folder(run.export) as folder:
            path = folder / f"{run.name}.safetensors"
            if config.export_whole:
                _write_model(run, path)
            files = _write_loras(run, folder, light)
            _read_back(run, path if config.export_whole else None, files)
            write_json(folder / MADE_FROM, made_from)
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


@dataclass(frozen=True)
class _LoraFiles:
    """A LoRA, and the files that hold it in both layouts."""

    lora: Lora
    kohya: Path
    diffusers: Path


def _write_loras(run: Run, folder: Path, light: LightLora | None) -> list[_LoraFiles]:
    loras = {f"-rank{light.rank}": light.lora} if light else {}
    if (trained := run.model / "lora" / LORA_FILE).is_file():
        loras[""] = read_lora(trained)
    files = [
        _LoraFiles(
            lora,
            folder / f"{run.name}-lora{which}.safetensors",
            folder / f"diffusers{which}" / LORA_FILE,
        )
        for which, lora in loras.items()
    ]
    for each in files:
        _write_lora(run, each)
    return files


def _write_lora(run: Run, files: _LoraFiles) -> None:
    variant = Variant.read(run.model)
    metadata, state = lora_metadata(run, variant, files.lora), to_kohya(files.lora, variant)
    content = save(state)  # model sites identify a LoRA by the hash of its data after the header
    data = content[8 + int.from_bytes(content[:8], "little") :]
    named = metadata | {"sshs_model_hash": hashlib.sha256(data).hexdigest()}
    _save(state, files.kohya, named)
    write_lora(files.diffusers, files.lora, metadata)


def to_kohya(lora: Lora, variant: Variant) -> State:
    """Return a LoRA in the layout of kohya's sd-scripts: down, up and alpha of each layer.

    lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight
    lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha
    """
    converted = {}
    for name, alpha in lora.alpha.items():
        layer = variant.family.to_kohya(name, variant.settings)
        converted[f"{layer}.lora_down.weight"] = lora.tensors[name + DOWN]
        converted[f"{layer}.lora_up.weight"] = lora.tensors[name + UP]
        converted[f"{layer}.alpha"] = torch.tensor(float(alpha))
    return converted


def _save(state: State, path: Path, metadata: dict[str, str]) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, path, {"format": "pt"} | metadata)


def _read_back(run: Run, whole: Path | None, files: list[_LoraFiles]) -> None:
    variant = Variant.read(run.model)
    if whole:
        pipeline = _load(whole, run.model, variant.family)
        for part, file in _weight_files(run.model, variant).items():
            state = load_file(file).items()
            expected = ((name.removeprefix("text_model."), tensor) for name, tensor in state)
            require_equal(whole, expected, effective_weights(getattr(pipeline, part)))
    elif files:
        pipeline = load_pipeline(str(run.model), torch.float32, safety_checker=False)
    for each in files:
        lora = each.lora
        parts = {part: getattr(pipeline, part) for part in lora.parts}
        layouts = {each.kohya: to_kohya(lora, variant), each.diffusers: lora.tensors}
        for (
            path,
            tensors,
        ) in layouts.items():  # compared scaled: diffusers has one alpha for all layers
            require_equal(path, tensors.items(), load_file(path).items())
            load_lora(pipeline, path)
            found = extract_lora(parts).scaled.items()
            require_equal(path, lora.scaled.items(), found, rounded=True)
            pipeline.unload_lora_weights()


def _load(path: Path, config: Path, family: Family) -> DiffusionPipeline:
    try:
        return family.PIPELINE.from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=torch.float32,
            **family.PIPELINE_OPTIONS | family.NO_SAFETY_CHECKER,
        )
    except Exception as error:  # loaders raise many kinds
        raise unreadable(path, error) from error
