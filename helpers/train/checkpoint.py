"""Save, verify and resume checkpoints: weights, moving average, optimizer and learning-rate state.

safetensors and JSON only. A folder is filled under a temporary name and renamed, with a manifest of hashes; a reader
takes the newest one that verifies. No random state is saved, since none is needed (data.py).
"""

import logging
import math
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.core import files
from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, read_json
from helpers.core.records import log_lines, read_log
from helpers.core.run import Run
from helpers.train.optim import TrainState

log = logging.getLogger(__name__)
WEIGHTS, AVERAGE = "weights.safetensors", "average.safetensors"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
CORRUPT_ERRORS = (  # what reading one of our files raises where its content is wrong
    *(ArithmeticError, AttributeError, LookupError, OSError),
    *(SafetensorError, TypeError, ValueError),
)
FORMAT = 1  # a checkpoint of this format resumes for ever (tests/golden)


@dataclass(frozen=True)
class TrainingSignature:
    """The settings and hashes that must be the same in a checkpoint and in the training that resumes it."""

    config: dict[str, Any]  # the settings that change what a step learns
    base_model: str  # fingerprint of its UNet
    dataset: str  # hash of its manifest
    parts: dict[str, str] = field(default_factory=dict)  # fingerprints of the base's other parts


def save(
    run: Run, state: TrainState, signature: TrainingSignature, rows: list[dict[str, Any]]
) -> Path:
    """Write and verify the checkpoint of `state.step`, with the training log's rows up to that step.

    Returns the checkpoint's folder. Raises RunError if the disk did not keep the files.
    """
    folder = run.checkpoint(state.step)
    tensors, numbers, groups = _flatten(state.optimizer.state_dict())
    saved = {"format": FORMAT, "step": state.step, "groups": groups, "numbers": numbers}
    saved |= vars(signature) | {"moments": sorted(tensors)}
    saved["schedule"] = state.lr_scheduler.state_dict()
    saved["scaler"] = state.scaler.state_dict() if state.scaler else None
    if state.in_backward:
        saved["grad_norm"] = float(state.in_backward.last_norm)  # the next step clips by it
    with files.replacing_folder(folder) as tmp_path:
        _write_tensors(tmp_path / WEIGHTS, _on_cpu(state.weights))
        _write_tensors(tmp_path / OPTIMIZER, tensors)
        if state.ema:
            _write_tensors(tmp_path / AVERAGE, _on_cpu(state.ema.average))
        files.write_text(tmp_path / run.train_log.name, log_lines(rows))
        files.write_json(tmp_path / STATE, saved)
    if what := files.find_corruption(folder):
        raise RunError(
            f"{what}: the disk did not keep the checkpoint; free some space and run 04_train again"
        )
    return folder


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with files.on_disk("write", path):
        save_file(tensors, path)


def prune(run: Run, verified: Path, keep: int, best_step: int) -> None:
    """Delete checkpoints older than the `keep` newest valid ones, except the best one. `verified` needs no check."""
    for folder in _newest_first(run):
        if keep > 0:
            keep -= folder == verified or find_corruption(run, folder) is None
        elif step_of(folder) != best_step:
            files.remove_folder(folder)


def resume(run: Run, state: TrainState, signature: TrainingSignature) -> None:
    """Load the newest valid checkpoint into `state`, or leave `state` at step 0 if there is no checkpoint.

    Raises RunError if the checkpoint is of another config, base model or dataset, if a newer version of this
    project wrote it, or if every checkpoint is damaged: hours of work are not begun again unasked.
    """
    files.recover_folders(run.checkpoints)
    problems = []
    for folder in _newest_first(run):
        what = find_corruption(run, folder) or _load(folder, state, signature)
        if what is None:
            state.step = state.saved_step = step_of(folder)
            return
        log.warning("%s: the checkpoint before it is taken", what)
        problems.append(what)
    found = {path.parent for path in run.checkpoints.glob(f"[!.]*/{MANIFEST}")}
    misnamed = sorted(found - set(_newest_first(run)))
    problems += [f"{folder} is not named as one" for folder in misnamed]
    if problems:
        raise RunError(
            f"no checkpoint can be read ({'; '.join(problems)}): put a good copy of one there, "
            f"or move {run.checkpoints} away to begin again from step 0"
        )


def find_corruption(run: Run, folder: Path) -> str | None:
    """Return why a checkpoint cannot be resumed, or None if it is valid.

    Its files must verify and be listed in the manifest, and its log must hold every step once. A checkpoint of a
    newer version counts as valid here; `resume` refuses to load it.
    """
    if what := files.find_corruption(folder):
        return what
    listed, log_name = read_json(folder / MANIFEST), run.train_log.name
    if STATE not in listed:
        return f"{folder / MANIFEST} does not list {STATE}"
    try:
        saved = read_json(folder / STATE)
        if saved["format"] > FORMAT:
            return None
        if saved["step"] != step_of(folder):
            return f"{folder} holds step {saved['step']}"
    except CORRUPT_ERRORS as error:
        return f"{folder / STATE} is damaged ({type(error).__name__}: {error})"
    for name in (WEIGHTS, OPTIMIZER, log_name):
        if name not in listed:
            return f"{folder / MANIFEST} does not list {name}"
    steps = [row["step"] for row in read_log(folder / log_name)]
    if steps != list(range(step_of(folder) + 1)):
        return f"{folder / log_name} does not hold each step once"
    return None


def _load(folder: Path, state: TrainState, signature: TrainingSignature) -> str | None:
    try:
        saved = read_json(folder / STATE)
        _check_compatible(folder, saved, signature)
        weights, average, tensors = _read_tensors(folder, state, saved)
        optimizer = _optimizer_state(state, saved, tensors)
        lr_scheduler, scaler = _lr_scheduler_state(state, saved), _scaler_state(state, saved)
        # everything is known to fit now
        state.optimizer.load_state_dict(optimizer)
        state.lr_scheduler.load_state_dict(lr_scheduler)
        if scaler:
            state.scaler.load_state_dict(scaler)
        _copy_into({name: p.data for name, p in state.weights.items()}, weights)
        if state.ema:
            _copy_into(state.ema.average, average)
        if state.in_backward:
            state.in_backward.resume(saved["step"], saved.get("grad_norm", 0.0))
            _restore_dtypes(state, tensors)
    except CORRUPT_ERRORS as error:
        return f"{folder} is damaged ({type(error).__name__}: {error})"
    return None


def _restore_dtypes(state: TrainState, tensors: dict[str, Tensor]) -> None:
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    for index, weight in enumerate(trained):
        values = state.optimizer.state[weight]
        # load_state_dict casts the tensors to bf16 if the weights are bf16
        for name, value in values.items():
            kept = tensors.get(f"{index}.{name}")
            if kept is not None and kept.dtype != value.dtype:
                values[name] = kept.to(value.device)


def _read_tensors(
    folder: Path, state: TrainState, saved: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    if state.ema and AVERAGE not in read_json(folder / MANIFEST):
        raise ValueError(f"{MANIFEST} does not list {AVERAGE}")
    weights = load_file(folder / WEIGHTS)
    average = load_file(folder / AVERAGE) if state.ema else {}
    tensors = load_file(folder / OPTIMIZER)
    _compare_shapes(weights, state.weights)
    _compare_shapes(average, state.ema.average if state.ema else {})
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments = {key: value for key, value in tensors.items() if ".exp_avg" in key}
    _compare_shapes(moments, {key: trained[int(key.split(".")[0])] for key in moments})
    if sorted(tensors) != saved["moments"]:
        raise ValueError(f"{OPTIMIZER} lacks a tensor, or has one too many")
    return weights, average, tensors


def _compare_shapes(theirs: dict[str, Tensor], ours: dict[str, Any]) -> None:
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs or name not in ours:
            raise ValueError(f"{name} is {'missing' if name in ours else 'not of this model'}")
        if theirs[name].shape != ours[name].shape:
            raise ValueError(
                f"{name} is {tuple(theirs[name].shape)}, not {tuple(ours[name].shape)}"
            )


def _optimizer_state(
    state: TrainState, saved: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    groups, rates = state.optimizer.state_dict()["param_groups"], saved["schedule"]["_last_lr"]
    if [group["params"] for group in saved["groups"]] != [group["params"] for group in groups]:
        raise ValueError("its optimizer's groups are not this one's")
    _require_finite("its optimizer", saved["numbers"].values())
    # only the learning rates come from the checkpoint
    groups = [group | {"lr": rate} for group, rate in zip(groups, rates, strict=True)]
    values: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | saved["numbers"]).items():
        index, name = key.split(".", 1)
        values.setdefault(int(index), {})[name] = value
    return {"state": values, "param_groups": groups}


def _lr_scheduler_state(state: TrainState, saved: dict[str, Any]) -> dict[str, Any]:
    rates, step = saved["schedule"]["_last_lr"], saved["step"]
    _require_finite("its schedule", rates)
    if saved["schedule"]["last_epoch"] != step:
        raise ValueError(f"its schedule is at step {saved['schedule']['last_epoch']!r}")
    position = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    return state.lr_scheduler.state_dict() | position


def _scaler_state(state: TrainState, saved: dict[str, Any]) -> dict[str, Any] | None:
    if not (state.scaler and saved["scaler"]):
        return None
    scale = {name: saved["scaler"][name] for name in ("scale", "_growth_tracker")}
    _require_finite("its scaler", scale.values())
    if scale["scale"] <= 0:
        raise ValueError(f"its scaler has {scale['scale']}")
    return state.scaler.state_dict() | scale


def _require_finite(what: str, values: Iterable[Any]) -> None:
    for value in values:
        if not math.isfinite(value):  # raises TypeError for what is no number at all
            raise ValueError(f"{what} has {value}")


def load_weights(folder: Path, weights: dict[str, nn.Parameter], use_ema: bool = False) -> None:
    """Copy a checkpoint's weights into `weights`. If `use_ema`, copy the moving average, unless none was saved."""
    name = AVERAGE if use_ema and AVERAGE in read_json(folder / MANIFEST) else WEIGHTS
    _copy_into({name: p.data for name, p in weights.items()}, load_file(folder / name))


def _copy_into(targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def latest_step(run: Run) -> int:
    """Return the step of the newest valid checkpoint, or 0 if there is none."""
    return next((step_of(f) for f in _newest_first(run) if find_corruption(run, f) is None), 0)


def _newest_first(run: Run) -> list[Path]:
    # leaves out a sync client's copy, such as `step-000250 (1)`
    name = re.compile(r"step-([0-9]{6}|[1-9][0-9]{6,})")
    folders = [p for p in run.checkpoints.glob("step-*") if name.fullmatch(p.name) and p.is_dir()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Return the step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step-"))


def _check_compatible(folder: Path, saved: dict[str, Any], signature: TrainingSignature) -> None:
    if saved["format"] > FORMAT:
        raise RunError(
            f"{folder} was written by a newer version of this project (format {saved['format']}, "
            f"this one reads {FORMAT}): update it, as a new session of a rented machine does"
        )
    if changed := _changes(saved, signature):
        raise RunError(
            f"{folder} belongs to another training ({'; '.join(changed)}): give this one a run name of its own, or set "
            "more={'begin_again': True}, which keeps what is there in sweep/before-N and trains from step 0"
        )


def _changes(saved: dict[str, Any], signature: TrainingSignature) -> list[str]:
    """Return in words by what a checkpoint's training and this one differ."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}  # of what was no setting yet
    theirs, ours = defaults | saved["config"], signature.config
    parts = saved.get("parts", {})  # the first checkpoints had none
    compared = parts.keys() & signature.parts.keys()
    known_by_weights = {"base_model"} | {"vae" for part in compared if part.startswith("VAE")}
    changed = [
        f"{name} was {theirs.get(name)!r}, not {ours[name]!r}"
        for name in ours
        if theirs.get(name) != ours[name] and name not in known_by_weights
    ]
    if theirs.get("images_per_step") != ours.get("images_per_step"):
        changed.append("that is train_batch_size x gradient_accumulation_steps x processes")
    changed += [
        f"the {what.replace('_', ' ')} was another"
        for what in ("base_model", "dataset")
        if saved[what] != getattr(signature, what)
    ]
    changed += [
        f"the base model's {part} was another"
        for part, hashed in parts.items()
        if hashed != signature.parts.get(part, hashed)
    ]
    return changed


def set_aside(run: Run, signature: TrainingSignature) -> bool:
    """Move the checkpoints of another training to sweep/before-N. Return True if there are any."""
    files.recover_folders(run.checkpoints)
    others = [folder for folder in _newest_first(run) if _is_of_another(folder, signature)]
    target = run.earlier_training() / run.checkpoints.name
    for folder in others:
        with files.on_disk("move", folder):
            target.mkdir(parents=True, exist_ok=True)
            folder.rename(target / folder.name)
    if others:
        log.warning("the checkpoints of an earlier training are now in %s", target)
    return bool(others)


def _is_of_another(folder: Path, signature: TrainingSignature) -> bool:
    with suppress(*CORRUPT_ERRORS):  # `resume` tells of it
        saved = read_json(folder / STATE)
        return saved["format"] <= FORMAT and bool(_changes(saved, signature))
    return False


def _flatten(
    state: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    flat = {}
    for index, values in state["state"].items():
        for name, value in values.items():  # bitsandbytes nests a dict, and loads either form
            inner = value if isinstance(value, dict) else {name: value}
            flat |= {f"{index}.{key}": entry for key, entry in inner.items()}
    tensors = _on_cpu({key: value for key, value in flat.items() if isinstance(value, Tensor)})
    return tensors, {k: v for k, v in flat.items() if k not in tensors}, state["param_groups"]
