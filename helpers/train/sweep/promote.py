"""The best trial of a sweep becomes the run's own training, as if it had been the only one."""

import os
import shutil
from pathlib import Path
from typing import Any

from helpers.core.errors import ElsewhereError, RunError
from helpers.core.files import (
    find_corruption,
    folder_hash,
    read_json,
    replacing_file,
    replacing_folder,
    write_json,
)
from helpers.core.run import Run
from helpers.figures.trials import best_of, read_trials
from helpers.mirror.sync import restore

SUFFIX_OF_LARGE = (
    ".safetensors"  # these are replaced whole, never written into: a second name costs no disk
)


def promote(run: Run) -> str:
    """Put the best trial's model, verdict, log, previews and checkpoints into the run; a second call does nothing.

    What the run had of its own training is moved beside, to sweep/before-N. Raises RunError if no trial came to
    its end, ElsewhereError if the best one's model is on another machine.
    """
    best = best_of(read_trials(run))
    if best is None:
        raise RunError(
            f"no trial of {run.sweep} came to its end: lower learning_rate's range and sweep again "
            "under another run name"
        )
    trial = run.trial(best.number)
    restore(trial, follow=False)  # another machine may have left it on the same Drive
    if what := find_corruption(trial.model):
        raise ElsewhereError(
            f"{what}: trial {best.number} is the best and ran on another machine; promote it there, or copy "
            f"its folder to {trial.folder}"
        )
    mark = {"trial": best.number, "value": best.value, "model": folder_hash(trial.model)}
    if not _is_promoted(run, mark):
        _replace_training(run, trial)
        write_json(run.promoted, mark)
    return f"{best.name}: held-out loss {best.value:.4f}, now the model of {run.folder}"


def _is_promoted(run: Run, mark: dict[str, Any]) -> bool:
    is_marked = run.promoted.is_file() and read_json(run.promoted) == mark
    return (
        is_marked and find_corruption(run.model) is None and folder_hash(run.model) == mark["model"]
    )


def _parts(run: Run) -> list[Path]:
    """All that a training leaves; the verdict comes last."""
    return [
        run.checkpoints,
        run.train_log,
        run.tensorboard,
        run.previews,
        run.image_losses,
        run.config("train"),
        run.model,
        run.verdict,
    ]


def _replace_training(run: Run, trial: Run) -> None:
    backup = next(p for i in range(10_000) if not (p := run.sweep / f"before-{i}").exists())
    for old in reversed(_parts(run)):
        if old.exists():
            kept = backup / old.relative_to(run.folder)
            kept.parent.mkdir(parents=True, exist_ok=True)
            old.rename(kept)
    for source, target in zip(_parts(trial), _parts(run), strict=True):
        if source.exists():
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder, so that the copy appears complete or not at all."""
    if source.is_dir():
        with replacing_folder(target, manifest=False) as tmp_path:
            shutil.copytree(source, tmp_path, copy_function=_link_or_copy, dirs_exist_ok=True)
    else:
        with replacing_file(target) as tmp_path:
            shutil.copy2(source, tmp_path)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(SUFFIX_OF_LARGE):
        try:
            os.link(source, target)
            return
        except OSError:  # a disk without links
            pass
    shutil.copy2(source, target)
