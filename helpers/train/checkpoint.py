"""A run's state on disk: what is trained, the optimizer's and the schedule's state, and what they belong to.

safetensors and JSON only. The folder is filled beside its place and renamed in with a manifest of
hashes; a reader takes the newest that verifies. Random states are not kept, since none are needed (order.py).
"""

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import (
    MANIFEST,
    find_corruption,
    on_disk,
    read_json,
    recover_folders,
    remove_folder,
    replacing_folder,
    write_json,
    write_text,
)
from helpers.core.records import log_lines, read_log
from helpers.core.run import Run

log = logging.getLogger(__name__)
WEIGHTS, AVERAGE = "weights.safetensors", "average.safetensors"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
UNFIT = (  # what reading a file of ours raises where it is not what it should be
    *(ArithmeticError, AttributeError, LookupError, OSError),
    *(SafetensorError, TypeError, ValueError),
)
FORMAT = 1  # a checkpoint of it resumes for ever (tests/golden)


@dataclass(frozen=True)
class Belongs:
    """What a checkpoint may be resumed with, and nothing else."""

    config: dict[str, Any]  # all that changes what a step learns
    base_model: str  # fingerprint of its UNet
    dataset: str  # hash of its manifest
    parts: dict[str, str] = field(default_factory=dict)  # fingerprints of the base's other parts


@dataclass(frozen=True)
class State:
    """All that moves while training: what a checkpoint holds."""

    weights: dict[str, nn.Parameter]
    optimizer: Any
    schedule: Any
    scaler: Any = None  # of fp16's gradients
    average: dict[str, Tensor] | None = None  # of the weights


def save(run: Run, step: int, state: State, belongs: Belongs, rows: list[dict[str, Any]]) -> Path:
    """Write the state after `step` with the log's `rows` up to it, and check it.

    Raises RunError if the disk did not keep it.
    """
    folder = run.checkpoint(step)
    moments, numbers, groups = _flatten(state.optimizer.state_dict())
    kept = {"format": FORMAT, "step": step, "groups": groups, "numbers": numbers, **vars(belongs)}
    kept["moments"] = sorted(moments)
    kept["schedule"] = state.schedule.state_dict()
    kept["scaler"] = state.scaler.state_dict() if state.scaler else None
    with replacing_folder(folder) as beside:
        _write_tensors(beside / WEIGHTS, _on_cpu(state.weights))
        _write_tensors(beside / OPTIMIZER, moments)
        if state.average is not None:
            _write_tensors(beside / AVERAGE, _on_cpu(state.average))
        write_text(beside / run.train_log.name, log_lines(rows))
        write_json(beside / STATE, kept)
    if what := find_corruption(folder):
        raise RunError(
            f"{what}: the disk did not keep the checkpoint; free some space and run 04_train again"
        )
    return folder


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    with on_disk("write", path):
        save_file(tensors, path)


def prune(run: Run, verified: Path, keep: int, best_step: int) -> None:
    """Let all go that is older than the newest `keep` that verify, but for the best.

    `verified` was just saved and checked.
    """
    for folder in _newest_first(run):
        if keep > 0:
            keep -= folder == verified or flaw(run, folder) is None
        elif step_of(folder) != best_step:
            remove_folder(folder)


def resume(run: Run, state: State, belongs: Belongs) -> int:
    """Load the newest checkpoint that verifies and return its step, or 0 if there is none at all.

    Raises RunError if it belongs to another config, base model or dataset, if a newer version of this
    project wrote it, or if there are checkpoints and each is damaged: hours are not begun again unasked.
    """
    recover_folders(run.checkpoints)
    told = []
    for folder in _newest_first(run):
        what = flaw(run, folder) or _load(folder, state, belongs)
        if what is None:
            return step_of(folder)
        log.warning("%s: the checkpoint before it is taken", what)
        told.append(what)
    told += [f"{folder} is not named as one" for folder in _strangely_named(run)]
    if told:
        raise RunError(
            f"no checkpoint can be read ({'; '.join(told)}): put a good copy of one there, "
            f"or move {run.checkpoints} away to begin again from step 0"
        )
    return 0


def flaw(run: Run, folder: Path) -> str | None:
    """What keeps a checkpoint from being gone on from, whatever the training; None if nothing does.

    Its files verify, all that each has are listed, and its log holds each step up to it once. One of a newer
    version has no flaw, since who reads it is to refuse it.
    """
    if what := find_corruption(folder):
        return what
    listed, log_name = read_json(folder / MANIFEST), run.train_log.name
    if STATE not in listed:
        return f"{folder / MANIFEST} does not list {STATE}"
    try:
        kept = read_json(folder / STATE)
        if kept["format"] > FORMAT:
            return None
        if kept["step"] != step_of(folder):
            return f"{folder} holds step {kept['step']}"
    except UNFIT as error:
        return f"{folder / STATE} is damaged ({type(error).__name__}: {error})"
    for name in (WEIGHTS, OPTIMIZER, log_name):
        if name not in listed:
            return f"{folder / MANIFEST} does not list {name}"
    steps = [row["step"] for row in read_log(folder / log_name)]
    whole = steps == list(range(step_of(folder) + 1))
    return None if whole else f"{folder / log_name} does not hold each step once"


def _load(folder: Path, state: State, belongs: Belongs) -> str | None:
    """Load a checkpoint without a flaw, whole or not at all; what keeps it from being loaded, or None."""
    try:
        kept = read_json(folder / STATE)
        _refuse_newer(folder, kept)
        _refuse_stranger(folder, kept, belongs)
        _put(state, kept, *_read_tensors(folder, state, kept))
    except UNFIT as error:
        return f"{folder} is damaged ({type(error).__name__}: {error})"
    return None


def _read_tensors(
    folder: Path, state: State, kept: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The weights, their average, and the optimizer's moments. Raises ValueError for any that do not fit."""
    if state.average is not None and AVERAGE not in read_json(folder / MANIFEST):
        raise ValueError(f"{MANIFEST} does not list {AVERAGE}")
    weights = load_file(folder / WEIGHTS)
    average = load_file(folder / AVERAGE) if state.average is not None else {}
    moments = load_file(folder / OPTIMIZER)
    _compare_shapes(weights, state.weights)
    _compare_shapes(average, state.average or {})
    trained = [p for group in state.optimizer.param_groups for p in group["params"]]
    own = {  # the first and second moment are shaped as their weight
        key: trained[int(key.split(".")[0])] for key in moments if ".exp_avg" in key
    }
    _compare_shapes({key: moments[key] for key in own}, own)
    if sorted(moments) != kept["moments"]:
        raise ValueError(f"{OPTIMIZER} lacks a tensor, or has one too many")
    return weights, average, moments


def _compare_shapes(theirs: dict[str, Tensor], ours: dict[str, Any]) -> None:
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in theirs or name not in ours:
            raise ValueError(f"{name} is {'missing' if name in ours else 'not of this model'}")
        if theirs[name].shape != ours[name].shape:
            raise ValueError(
                f"{name} is {tuple(theirs[name].shape)}, not {tuple(ours[name].shape)}"
            )


def _put(
    state: State,
    kept: dict[str, Any],
    weights: dict[str, Tensor],
    average: dict[str, Tensor],
    moments: dict[str, Tensor],
) -> None:
    """Put what was read into what is trained, once all of it is known to fit."""
    optimizer = _optimizer(state, kept, moments)
    schedule, scaler = _schedule(state, kept), _scaler(state, kept)
    state.optimizer.load_state_dict(optimizer)
    state.schedule.load_state_dict(schedule)
    if scaler:
        state.scaler.load_state_dict(scaler)
    _copy_into({name: p.data for name, p in state.weights.items()}, weights)
    _copy_into(state.average or {}, average)


def _optimizer(state: State, kept: dict[str, Any], moments: dict[str, Tensor]) -> dict[str, Any]:
    """The optimizer's state as it was kept, with the settings that it has now, but the rate that it had."""
    groups, rates = state.optimizer.state_dict()["param_groups"], kept["schedule"]["_last_lr"]
    if [group["params"] for group in kept["groups"]] != [group["params"] for group in groups]:
        raise ValueError("its optimizer's groups are not this one's")
    _require_numbers("its optimizer", kept["numbers"].values())
    groups = [group | {"lr": rate} for group, rate in zip(groups, rates, strict=True)]
    return _unflatten(moments, kept["numbers"], groups)


def _schedule(state: State, kept: dict[str, Any]) -> dict[str, Any]:
    """A schedule's place and its last rates; all else follows from the settings."""
    rates, step = kept["schedule"]["_last_lr"], kept["step"]
    _require_numbers("its schedule", rates)
    if kept["schedule"]["last_epoch"] != step:
        raise ValueError(f"its schedule is at step {kept['schedule']['last_epoch']!r}")
    place = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    return state.schedule.state_dict() | place


def _scaler(state: State, kept: dict[str, Any]) -> dict[str, Any] | None:
    """The scale of fp16's gradients; None where there is none now, or was none, as on a GPU that trained in bf16."""
    if not (state.scaler and kept["scaler"]):
        return None
    scale = {name: kept["scaler"][name] for name in ("scale", "_growth_tracker")}
    _require_numbers("its scaler", scale.values())
    if scale["scale"] <= 0:
        raise ValueError(f"its scaler has {scale['scale']}")
    return state.scaler.state_dict() | scale


def _require_numbers(what: str, values: Iterable[Any]) -> None:
    for value in values:
        if not math.isfinite(value):  # raises TypeError for what is no number at all
            raise ValueError(f"{what} has {value}")


def _refuse_newer(folder: Path, kept: dict[str, Any]) -> None:
    if kept["format"] > FORMAT:
        raise RunError(
            f"{folder} was written by a newer version of this project (format {kept['format']}, "
            f"this one reads {FORMAT}): update it; on Colab a new runtime does"
        )


def load_weights(folder: Path, weights: dict[str, nn.Parameter], average: bool = False) -> None:
    """Put a checkpoint's weights, or their average where it has one, into the model's."""
    name = AVERAGE if average and AVERAGE in read_json(folder / MANIFEST) else WEIGHTS
    _copy_into({name: p.data for name, p in weights.items()}, load_file(folder / name))


def _copy_into(targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def latest_step(run: Run) -> int:
    """The step of the newest checkpoint without a flaw, 0 if there is none."""
    return next((step_of(f) for f in _newest_first(run) if flaw(run, f) is None), 0)


def _newest_first(run: Run) -> list[Path]:
    """What is named as a checkpoint; a copy such as `step-000250 (1)` is not."""
    named = [p for p in run.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    folders = [p for p in named if p.is_dir() and p == run.checkpoint(step_of(p))]
    return sorted(folders, key=step_of, reverse=True)


def _strangely_named(run: Run) -> list[Path]:
    """Checkpoints under another name, such as a sync client's `step-000250 (1)`."""
    found = [path.parent for path in sorted(run.checkpoints.glob(f"[!.]*/{MANIFEST}"))]
    return [folder for folder in found if folder not in _newest_first(run)]


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _refuse_stranger(folder: Path, state: dict[str, Any], belongs: Belongs) -> None:
    defaults = {f.name: f.default for f in fields(TrainConfig)}  # of what was no setting yet
    theirs, ours = defaults | state["config"], belongs.config
    changed = [
        f"{name} was {theirs.get(name)!r}, not {ours[name]!r}"
        for name in ours
        if theirs.get(name) != ours[name] and name != "base_model"  # known by its weights
    ]
    if theirs.get("images_per_step") != ours.get("images_per_step"):
        changed.append("that is train_batch_size x gradient_accumulation_steps x processes")
    changed += [
        f"the {what.replace('_', ' ')} was another"
        for what in ("base_model", "dataset")
        if state[what] != getattr(belongs, what)
    ]
    changed += [
        f"the base model's {part} was another"
        for part, kept in state.get("parts", {}).items()  # the first checkpoints did not tell
        if kept != belongs.parts.get(part, kept)
    ]
    if changed:
        raise RunError(
            f"{folder} belongs to another training ({'; '.join(changed)}): "
            f"give this one a run name of its own, or move {folder.parent} away"
        )


def _flatten(
    state: dict[str, Any],
) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]]:
    """An optimizer's state as named tensors, its plain numbers, and its groups."""
    flat = {
        f"{index}.{name}": value
        for index, values in state["state"].items()
        for name, value in _unwrap(values).items()
    }
    moments = _on_cpu({key: value for key, value in flat.items() if isinstance(value, Tensor)})
    return moments, {k: v for k, v in flat.items() if k not in moments}, state["param_groups"]


def _unwrap(values: dict[str, Any]) -> dict[str, Any]:
    """A weight's state with what bitsandbytes saves as a dict inside; it loads either form."""
    inner = [value for value in values.values() if isinstance(value, dict)]
    outer = {name: value for name, value in values.items() if not isinstance(value, dict)}
    return outer | {name: value for part in inner for name, value in part.items()}


def _unflatten(
    moments: dict[str, Tensor], numbers: dict[str, Any], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in (moments | numbers).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}
