"""Export a model for other programs: as one checkpoint file (for ComfyUI and others), and as LoRAs in two layouts.

Weights keep the values and the dtype that they have in model/. Each file is read back by diffusers' loaders and
compared with model/ before export/ is replaced.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save, save_file

from helpers.config import InferenceConfig
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
from helpers.models.pipeline import files_dtype, load_pipeline
from helpers.models.readback import effective_weights, require_equal, unreadable

log = logging.getLogger(__name__)
MADE_FROM = "made_from.json"
FORMAT = 3  # of export/; an export of another format is written again
MAX_BYTES = 5e9  # of a model that is written as one file beside its LoRA, unless one_file says so


def export(
    run: Run, config: InferenceConfig | None = None, sampler: Sampler | None = None
) -> list[Path]:
    """Write export/ from model/, unless export/ is up to date. Return the paths of the weight files.

    NAME.safetensors              the full model as an original Stable Diffusion checkpoint
    NAME.yaml                     its config, if the model predicts velocity, which weights alone do not show
    NAME-lora.safetensors         the LoRA in kohya's layout, for ComfyUI and similar programs
    NAME-lora-blocks.safetensors  of SDXL, with diffusers' names of blocks, which some programs look for
    diffusers/                    the LoRA for `load_lora_weights` of diffusers alone
    NAME-lora-rank32.safetensors  the light LoRA that `config` asks for and `sampler` makes, and diffusers-rank32/
    The config's `one_file` is "yes", "no" or "auto": without the first where there is a LoRA and the model is larger
    than MAX_BYTES.
    Raises RunError if model/ is missing or corrupt, or a file that was read back differs from it.
    """
    config = config or InferenceConfig(run=run.name)
    run.require(run.verdict, "train")
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    light = [config.lora_rank, config.lora_share] if config.has_light_lora and sampler else None
    has_lora = light is not None or (run.model / "lora" / LORA_FILE).is_file()
    is_large = folder_bytes(run.model) > MAX_BYTES
    whole = not has_lora or config.one_file == "yes" or (config.one_file == "auto" and not is_large)
    made_from = {"model": folder_hash(run.model), "format": FORMAT, "one_file": whole}
    made_from |= {"light_lora": light} if light else {}
    if find_corruption(run.export) or read_json(run.export / MADE_FROM) != made_from:
        made = sampler.light_lora(config) if sampler else None
        with replacing_folder(run.export) as folder:
            if whole:
                _write_model(run, folder / f"{run.name}.safetensors")
            files = _write_loras(run, folder, made)
            _read_back(run, folder, files)
            write_json(folder / MADE_FROM, made_from)
    if config.one_file == "no" and not has_lora:
        log.warning(
            "one_file is 'no', but the model has no LoRA, so it is written whole: set lora_rank with it"
        )
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


@dataclass(frozen=True)
class _LoraFiles:
    """A LoRA, and its tensors by the file that holds them, in each layout."""

    lora: Lora
    kohya: dict[Path, State]  # once for each of the family's namings
    diffusers: Path


def _write_loras(run: Run, folder: Path, light: LightLora | None) -> list[_LoraFiles]:
    loras = {f"-rank{light.rank}": light.lora} if light else {}
    if (trained := run.model / "lora" / LORA_FILE).is_file():
        loras[""] = read_lora(trained)
    variant, written = Variant.read(run.model), []
    for which, lora in loras.items():
        first, *others = to_kohya(lora, variant)
        kohya = {folder / f"{run.name}-lora{which}.safetensors": first}
        kohya |= {folder / f"{run.name}-lora{which}-blocks.safetensors": state for state in others}
        written.append(_LoraFiles(lora, kohya, folder / f"diffusers{which}" / LORA_FILE))
        _write_lora(written[-1], lora_metadata(run, variant, lora))
    return written


def _write_lora(files: _LoraFiles, metadata: dict[str, str]) -> None:
    for path, state in files.kohya.items():
        content = save(state)
        # model sites identify a LoRA by the hash of its data after the header
        data = content[8 + int.from_bytes(content[:8], "little") :]
        named = metadata | {"sshs_model_hash": hashlib.sha256(data).hexdigest()}
        _save(state, path, named)
    write_lora(files.diffusers, files.lora, metadata)


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


def _read_back(run: Run, folder: Path, files: list[_LoraFiles]) -> None:
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
    for each in files:
        lora = each.lora
        parts = {part: getattr(pipeline, part) for part in lora.parts}
        layouts = each.kohya | {each.diffusers: lora.tensors}
        for path, tensors in layouts.items():
            require_equal(path, tensors.items(), load_file(path).items())
            load_lora(pipeline, path)
            # compared scaled: diffusers has one alpha for all layers
            scaled = extract_lora(parts).scaled.items()
            loaded = ((name, tensor.to(dtype)) for name, tensor in scaled)
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
