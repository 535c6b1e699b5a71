"""Trainings one after another in a run: each cell run again, and what is kept of which training."""

import os
import re
import shutil
import signal
from types import SimpleNamespace

import pytest

from helpers.core.errors import RunError, Stopped
from helpers.train.finish import verify_model
from helpers.train.trainer import train
from tests.conftest import lines
from tests.test_train import settings


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def move_away(run) -> None:
    run.checkpoints.rename(run.folder / f"checkpoints-{len(names(run.folder))}")


def test_previews_belong_to_a_training(dataset, tiny_base, caplog):
    """Checkpoints are moved away and a training begins anew: nothing of the earlier one is mixed in, or lost."""
    given = {"prior_share": 0.0, "prompts": ("a",), "num_inference_steps": 1}
    list(train(settings(tiny_base, preview_every_steps=1, **given), dataset))
    earlier = {path.name: path.read_bytes() for path in dataset.preview_files()}
    assert len(earlier) == 5
    for number in (1, 2):
        move_away(dataset)
        anew = settings(tiny_base, preview_every_steps=2, learning_rate=1e-4 * number, **given)
        next(steps := train(anew, dataset))
        assert [path.name for path in dataset.preview_files()] == ["step-000000.png"]
        list(steps)
        assert len(dataset.preview_files()) == 3
    kept = dataset.previews / "before-1"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == earlier
    assert len(names(dataset.previews / "before-2")) == 3
    assert (
        "previews of an earlier training are now in runs/pictures/previews/before-1" in caplog.text
    )


def test_a_training_that_goes_on_or_has_only_its_first_preview_moves_nothing(dataset, tiny_base):
    given = {"prior_share": 0.0, "prompts": ("a",), "preview_every_steps": 1}
    for _ in range(2):  # stopped before the first checkpoint
        steps = train(settings(tiny_base, **given), dataset)
        next(steps), steps.close()
    list(train(settings(tiny_base, **given), dataset))
    list(train(settings(tiny_base, **given, max_steps=6), dataset))
    assert names(dataset.previews) == {f"step-{step:06d}.png" for step in range(7)}


def stop_at(steps, step: int) -> None:
    """What the notebook's cell does, and a person who stops it."""
    with pytest.raises(Stopped, match=f"stopped after step {step} "):
        for done in steps:
            if done.step == step:
                os.kill(os.getpid(), signal.SIGINT)


def test_the_cell_that_trains_goes_on_when_it_is_run_again(dataset, tiny_base):
    list(train(settings(tiny_base, max_steps=2), dataset))
    steps = train(settings(tiny_base, max_steps=6), dataset)
    stop_at(steps, 4)
    said = verify_model(dataset)
    assert "ended at step 2, and the one under way, of 6 steps, is at step 4, which is kept" in said
    assert "run the cell under Train again, and it goes on" in said
    stop_at(steps, 5)
    assert [step.step for step in steps] == [6]
    assert list(steps) == []
    assert [row["step"] for row in lines(dataset.train_log)] == list(range(7))
    assert "under way" not in verify_model(dataset)


def test_the_last_cell_says_what_is_kept_of_a_training_begun_anew(dataset, tiny_base):
    list(train(settings(tiny_base, max_steps=4), dataset))
    move_away(dataset)
    steps = train(settings(tiny_base, max_steps=3, learning_rate=1e-4), dataset)
    next(steps)
    assert "ended at step 4, and the one under way, of 3 steps, is at step 0" in verify_model(
        dataset
    )
    next(steps)
    said = verify_model(dataset)
    assert "is at step 1, with no checkpoint yet: run the cell under Train again" in said
    assert [step.step for step in steps] == [2, 3]
    assert "under way" not in verify_model(dataset)


def test_after_more_steps_were_asked_for_the_last_cell_says_so(dataset, tiny_base):
    list(train(settings(tiny_base, max_steps=2), dataset))
    steps = train(settings(tiny_base, max_steps=6), dataset)
    next(steps)
    steps.close()
    assert "ended at step 2, and the one under way, of 6 steps" in verify_model(dataset)


def test_after_an_error_the_cell_goes_on_once_it_is_mended(dataset, tiny_base, tmp_path):
    steps = train(settings(tmp_path / "base"), dataset)
    for _ in range(2):
        with pytest.raises(RunError, match="no such file or folder"):
            list(steps)
    (tmp_path / "base").symlink_to(tiny_base)
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]


def test_what_a_disk_has_not_is_told_in_units_that_say_something(dataset, tiny_base, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    with pytest.raises(RunError) as caught:
        list(train(settings(tiny_base), dataset))
    said = str(caught.value)
    assert re.match(
        r"4 checkpoints of 2\.\d MB and a model of \d+ kB do not fit into the 1\.5 MB free", said
    )
    assert not re.search(r"\b0(\.0+)? [GMk]B", said)


def test_an_image_that_was_changed_in_place_is_told_by_name_and_left_as_it_is(dataset, tiny_base):
    path = dataset.split_images("train")[0]
    changed = bytearray(path.read_bytes())
    changed[-20] ^= 1
    path.write_bytes(changed)
    with pytest.raises(
        RunError, match=f"{path} is not what manifest.json says: run 03_dataset again"
    ):
        list(train(settings(tiny_base), dataset))
    assert path.read_bytes() == changed
