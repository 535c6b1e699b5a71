"""Checkpoints on Drive by their step: a clock that was set back, or an earlier training, changes nothing."""

# ruff: noqa: F401, F811  (fixtures of another file)
import os
import shutil

from helpers.mirror import sync
from helpers.mirror.index import Folder, newest_first
from helpers.train.checkpoint import latest_step, prune
from tests.test_mirror import (
    claimed_step,
    machine,
    on_a_fresh_machine,
    prepared,
    run,
    there,
    write_checkpoint,
)


def folder(hours: float) -> Folder:
    return Folder("0" * 64, int(hours * 3600e9), 10)


def step(number: int, run: str = "checkpoints") -> str:
    return f"{run}/step-{number:06d}"


def test_a_clock_that_was_set_back_does_not_change_the_order():
    folders = {step(100): folder(9), step(200): folder(2), step(300): folder(3), "model": folder(4)}
    assert newest_first(folders) == [step(300), step(200), step(100), "model"]
    assert newest_first(folders | {"model": folder(10)})[0] == "model"
    assert newest_first({step(n): folder(0) for n in (999_999, 1_000_000, 2)})[0] == step(1_000_000)


def test_an_earlier_trainings_come_after_what_is_here():
    """Checkpoints were moved away at step 5000 and a training begun anew."""
    folders = {step(n): folder(n / 1000) for n in (4750, 5000)} | {step(250): folder(9)}
    folders |= {step(500): folder(10)}
    here = {step(250), step(500)}
    assert newest_first(folders, here) == [step(500), step(250), step(5000), step(4750)]
    pruned_here = {step(500)}
    assert newest_first(folders, pruned_here)[:2] == [step(500), step(250)]


def test_trials_of_a_sweep_are_series_of_their_own():
    first, second = "sweep/trial-000/checkpoints", "sweep/trial-001/checkpoints"
    folders = {
        step(900, first): folder(1),
        step(100, second): folder(5),
        step(50, second): folder(4),
    }
    ordered = newest_first(folders, {step(100, second)})
    assert ordered == [step(100, second), step(50, second), step(900, first)]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_checkpoints_of_a_clock_that_runs_backwards_are_kept_by_their_step(
    run, there, machine, tmp_path
):
    for number in range(1, 6):
        write_checkpoint(run, number)
        hours_ago = (10**9) * 3600 * number
        manifest = run.checkpoint(number) / "manifest.json"
        back = manifest.stat().st_mtime_ns - hours_ago
        os.utime(manifest, ns=(back, back))
        prune(run, run.checkpoint(number), 1, 0)
        assert claimed_step(sync.sync(run)) == number
    assert names(there / "checkpoints") == ["step-000004", "step-000005"]
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 5


def test_a_training_begun_anew_takes_the_place_of_an_earlier_one(run, there, machine, tmp_path):
    for number in (8, 9):
        write_checkpoint(run, number)
        sync.sync(run)
    shutil.move(run.checkpoints, tmp_path / "moved away")
    for number in (1, 2):
        write_checkpoint(run, number)
        sync.sync(run)
    assert claimed_step(sync.sync(run)) == 2
    assert names(there / "checkpoints") == ["step-000001", "step-000002"]
    on_a_fresh_machine(run, machine, tmp_path)
    assert latest_step(run) == 2
