"""Make a sweep's best trial the run's own training, by copying the trial's files into the run."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from helpers.core import files
from helpers.core.errors import ElsewhereError, RunError
from helpers.core.files import find_corruption, folder_hash, read_json, write_json
from helpers.core.run import Run
from helpers.figures.trials import best_trial, read_trials
from helpers.mirror.sync import restore

HARD_LINKED = ".safetensors"  # only ever replaced, so a hard link is as good as a copy


def promote(run: Run) -> str:
    """Copy the best trial's model, verdict, log, previews and checkpoints into the run; a second call does nothing.

    The run's own earlier training is moved to sweep/before-N. Raises RunError if no trial is complete, and
    ElsewhereError if the best one's model is on another machine.
    """
    best = best_trial(read_trials(run))
    if best is None:
        raise RunError(
            f"no trial of {run.sweep} is complete: lower learning_rate's range and sweep again "
            "under another run name"
        )
    trial = run.trial(best.number)
    restore(trial, follow=False)  # another machine may have left it on the same Drive
    if what := find_corruption(trial.model):
        raise ElsewhereError(
            f"{what}: trial {best.number} is the best and ran on another machine; run the sweep again there, or copy "
            f"its folder to {trial.folder}"
        )
    record = {"trial": best.number, "value": best.value, "model": folder_hash(trial.model)}
    is_promoted = run.promoted.is_file() and read_json(run.promoted) == record
    if not is_promoted or find_corruption(run.model) or folder_hash(run.model) != record["model"]:
        _replace_training(run, trial)
        write_json(run.promoted, record)
    return f"{best.name}: validation loss {best.value:.4f}, now the model of {run.folder}"


def _outputs(run: Run) -> list[Path]:
    shown = [run.train_log, run.tensorboard, run.previews, run.image_losses]
    # the verdict last, so that it is never there without the others
    return [run.checkpoints, *shown, run.config("train"), run.model, run.verdict]


def _replace_training(run: Run, trial: Run) -> None:
    backup_path = run.earlier_training()
    for old in reversed(_outputs(run)):
        if old.exists():
            moved = backup_path / old.relative_to(run.folder)
            moved.parent.mkdir(parents=True, exist_ok=True)
            old.rename(moved)
    for source, target in zip(_outputs(trial), _outputs(run), strict=True):
        if source.exists():
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        with files.replacing_folder(target, manifest=False) as tmp_path:
            shutil.copytree(source, tmp_path, copy_function=_link_or_copy, dirs_exist_ok=True)
    else:
        with files.replacing_file(target) as tmp_path:
            shutil.copy2(source, tmp_path)


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(HARD_LINKED):
        with suppress(OSError):  # a disk without hard links
            os.link(source, target)
            return
    shutil.copy2(source, target)
