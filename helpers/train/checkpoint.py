"""A run's state on disk: what is trained, the optimizer's and the schedule's state, and what they belong to.

safetensors and JSON only. The folder is filled beside its place and renamed in with a manifest of
hashes; a reader takes the newest that verifies. Random states are not kept, since none are needed (order.py).
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.errors import RunError
from helpers.run import Run
from helpers.store import damage, read_json, replacing_folder, write_json

log = logging.getLogger(__name__)
WEIGHTS, AVERAGE = "weights.safetensors", "average.safetensors"
OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Belongs:
    """What a checkpoint may be resumed with, and nothing else."""

    config: dict[str, Any]
    base_model: str  # fingerprint of its UNet
    dataset: str  # hash of its manifest


@dataclass(frozen=True)
class State:
    """All that moves while training: what a checkpoint holds."""

    weights: dict[str, nn.Parameter]
    optimizer: Any
    schedule: Any
    scaler: Any = None  # of fp16's gradients
    average: dict[str, Tensor] | None = None  # of the weights


def save(run: Run, step: int, state: State, belongs: Belongs) -> Path:
    """Write the state after `step`, and check it. Raises RunError if the disk did not keep it."""
    folder = run.checkpoint(step)
    moments, numbers, groups = _flatten(state.optimizer.state_dict())
    kept = {"step": step, "groups": groups, "numbers": numbers, **vars(belongs)}
    kept["schedule"] = state.schedule.state_dict()
    kept["scaler"] = state.scaler.state_dict() if state.scaler else None
    with replacing_folder(folder) as beside:
        save_file(_on_cpu(state.weights), beside / WEIGHTS)
        save_file(moments, beside / OPTIMIZER)
        if state.average is not None:
            save_file(_on_cpu(state.average), beside / AVERAGE)
        write_json(beside / STATE, kept)
    if what := damage(folder):
        raise RunError(
            f"{what}: the disk did not keep the checkpoint; free some space and run 04_train again"
        )
    return folder


def prune(run: Run, keep: int, best_step: int) -> None:
    """Let all but the newest `keep` go, and the best."""
    for old in _newest_first(run)[keep:]:
        if step_of(old) != best_step:
            shutil.rmtree(old)


def resume(run: Run, state: State, belongs: Belongs) -> int:
    """Load the newest checkpoint that verifies and return its step, or 0 if there is none.

    Raises RunError if it belongs to another config, base model or dataset.
    """
    for folder in _newest_first(run):
        if what := damage(folder):
            log.warning("%s: the checkpoint before it is taken", what)
            continue
        kept = read_json(folder / STATE)
        _refuse_stranger(folder, kept, belongs)
        load_weights(folder, state.weights)
        moments = load_file(folder / OPTIMIZER)
        state.optimizer.load_state_dict(_unflatten(moments, kept["numbers"], kept["groups"]))
        state.schedule.load_state_dict(kept["schedule"])
        if state.scaler:
            state.scaler.load_state_dict(kept["scaler"])
        if state.average is not None:
            _copy_into(state.average, load_file(folder / AVERAGE))
        return kept["step"]
    return 0


def load_weights(folder: Path, weights: dict[str, nn.Parameter], average: bool = False) -> None:
    """Put a checkpoint's weights, or their average where it has one, into the model's."""
    name = AVERAGE if average and (folder / AVERAGE).is_file() else WEIGHTS
    _copy_into({name: p.data for name, p in weights.items()}, load_file(folder / name))


def _copy_into(targets: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        targets[name].copy_(tensor)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}


def latest_step(run: Run) -> int:
    """The step of the newest checkpoint that verifies, 0 if there is none."""
    return next((step_of(folder) for folder in _newest_first(run) if damage(folder) is None), 0)


def _newest_first(run: Run) -> list[Path]:
    folders = [p for p in run.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _refuse_stranger(folder: Path, state: dict[str, Any], belongs: Belongs) -> None:
    theirs, ours = state["config"], belongs.config
    changed = [
        f"{name} was {theirs.get(name)!r}, not {ours[name]!r}"
        for name in ours
        if theirs.get(name) != ours[name]
    ]
    changed += [
        f"the {what.replace('_', ' ')} was another"
        for what in ("base_model", "dataset")
        if state[what] != getattr(belongs, what)
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
        for name, value in values.items()
    }
    moments = _on_cpu({key: value for key, value in flat.items() if isinstance(value, Tensor)})
    return moments, {k: v for k, v in flat.items() if k not in moments}, state["param_groups"]


def _unflatten(
    moments: dict[str, Tensor], numbers: dict[str, Any], groups: list[dict[str, Any]]
) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in (moments | numbers).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}
