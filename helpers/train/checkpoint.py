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

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.errors import RunError
from helpers.run import Run
from helpers.store import damage, read_json, replacing_folder, write_json

log = logging.getLogger(__name__)
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Belongs:
    """What a checkpoint may be resumed with, and nothing else."""

    config: dict[str, Any]
    base_model: str  # fingerprint of its UNet
    dataset: str  # hash of its manifest


def save(
    run: Run,
    step: int,
    weights: dict[str, nn.Parameter],
    optimizer: Any,
    schedule: Any,
    belongs: Belongs,
    keep: int,
) -> Path:
    """Write the state after `step`, check it, and only then let older ones beyond `keep` go."""
    folder = run.checkpoint(step)
    moments, groups = _flatten(optimizer.state_dict())
    with replacing_folder(folder) as beside:
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in weights.items()}, beside / WEIGHTS
        )
        save_file(moments, beside / OPTIMIZER)
        state = {"step": step, "groups": groups, "schedule": schedule.state_dict(), **vars(belongs)}
        write_json(beside / STATE, state)
    if what := damage(folder):
        raise RunError(
            f"{what}: the disk did not keep the checkpoint; free some space and run 04_train again"
        )
    for old in _newest_first(run)[keep:]:
        shutil.rmtree(old)
    return folder


def resume(
    run: Run, weights: dict[str, nn.Parameter], optimizer: Any, schedule: Any, belongs: Belongs
) -> int:
    """Load the newest checkpoint that verifies and return its step, or 0 if there is none.

    Raises RunError if it belongs to another config, base model or dataset.
    """
    for folder in _newest_first(run):
        if what := damage(folder):
            log.warning("%s: the checkpoint before it is taken", what)
            continue
        state = read_json(folder / STATE)
        _refuse_stranger(folder, state, belongs)
        for name, tensor in load_file(folder / WEIGHTS).items():
            weights[name].data.copy_(tensor)
        optimizer.load_state_dict(_unflatten(load_file(folder / OPTIMIZER), state["groups"]))
        schedule.load_state_dict(state["schedule"])
        return state["step"]
    return 0


def latest_step(run: Run) -> int:
    """The step of the newest checkpoint that verifies, 0 if there is none."""
    return next((_step(folder) for folder in _newest_first(run) if damage(folder) is None), 0)


def _newest_first(run: Run) -> list[Path]:
    folders = [p for p in run.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)]
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
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


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as named tensors, and its groups as plain values."""
    moments = {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, values in state["state"].items()
        for name, value in values.items()
    }
    return moments, state["param_groups"]


def _unflatten(moments: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}
