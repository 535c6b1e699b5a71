"""Nothing is lost: a training that is killed, interrupted or refused by its disk goes on to the same bits."""

import errno
import hashlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError, Stopped
from helpers.core.files import (
    find_corruption,
    locked_by_process,
    sha256,
    write_json,
    write_manifest,
)
from helpers.core.records import read_log
from helpers.core.run import Run
from helpers.host import here
from helpers.host.interface import FOLDER, Place
from helpers.mirror import sync
from helpers.train import checkpoint, finish, trainer
from helpers.train.checkpoint import TrainingSignature, latest_step, resume, save
from helpers.train.optim import MovingAverage, TrainState
from helpers.train.prepare import training_signature
from helpers.train.trainer import train
from tests import faults
from tests.conftest import SMALL_TRAINING, lines, train_until, typed
from tests.golden import SETTINGS, final_weights, golden_folder
from tests.kills import forked

# across epoch ends (nine images), with all that has a state or draws numbers
EVENTFUL = {
    **SMALL_TRAINING,
    "max_steps": 12,
    "save_every_steps": 3,
    "validate_every_steps": 4,
    "validation_pairs": 16,
    "preview_every_steps": 12,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "caption_dropout": 0.5,
    "random_flip": True,
    "crops_per_image": 2,
    "use_ema": True,
    "prior_share": 0.25,
    "noise_offset": 0.1,
}
VARIANTS = {
    "full": {},
    "lora": {"method": "lora", "rank": 4},
    "text encoder": {"method": "lora", "rank": 4, "train_text_encoder": True},
}


def small(base, **more) -> TrainConfig:
    return configure(
        TrainConfig, {"run": "pictures", "base_model": str(base), **SMALL_TRAINING, **more}
    )


def eventful(base, **more) -> TrainConfig:
    return configure(TrainConfig, {"run": "pictures", "base_model": str(base), **EVENTFUL, **more})


def result(run: Run, steps: int) -> dict:
    """All that must be the same in the end: every bit that is kept, and the log but for its times."""
    last = run.checkpoint(steps)
    assert find_corruption(last) is None and find_corruption(run.model) is None
    kept = {p.name: sha256(p) for p in last.glob("*.safetensors")}
    kept["model"] = sha256(run.model / "unet/diffusion_pytorch_model.safetensors")
    state = json.loads((last / "state.json").read_text())
    return kept | {"state": state, "log": without_times(run)}


def without_times(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "images_per_s"} for row in lines(run.train_log)]


def assert_log_is_exact(run: Run, steps: int) -> None:
    """Each step once and in order, in the log and in all of TensorBoard's event files together."""
    assert [row["step"] for row in lines(run.train_log)] == list(range(steps + 1))
    seen = [
        event.step
        for path in run.tensorboard.glob("events*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == "learning_rate"
    ]
    assert seen == list(range(steps + 1))


def start_over(run: Run) -> None:
    """The run as 03 left it, but for the cache."""
    for name in ("checkpoints", "model", "previews", "tensorboard"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for path in (run.train_log, run.verdict, run.image_losses, run.config("train")):
        path.unlink(missing_ok=True)


# --- SIGKILL at random moments


@contextmanager
def fed_to(path: Path):
    """Append a hash of each micro-batch that reaches the loss in this process, with its step's number."""
    real, file = trainer.optimizer_step, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def spy(training, state, batch):
        digest = hashlib.sha256()
        for tensor in (t for micro in batch for t in micro.values()):
            digest.update(tensor.numpy().tobytes())
        os.write(file, f"{state.step} {digest.hexdigest()}\n".encode())
        return real(training, state, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "optimizer_step", spy)
        yield


def kill_after(seconds: float, act) -> bool:
    """Run `act` in a child and SIGKILL it after some seconds; whether that came before its end."""
    pid = forked(act)
    ended = os.pidfd_open(pid)
    if not select.select([ended], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(ended)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_at_random(run: Run, config: TrainConfig, kills: int, seed: int) -> tuple[int, int, int]:
    """Train undisturbed, then again and again with up to four SIGKILLs each; (kills, runs, resumes from >0)."""
    order = run.folder / "order.txt"
    steps = config.max_steps

    def act():
        with fed_to(order):
            list(train(config, run))

    list(train(config, run))  # fills the cache
    start_over(run)
    began = time.perf_counter()
    assert not kill_after(600, act)
    took = time.perf_counter() - began
    expected, expected_order = result(run, steps), order.read_text().splitlines()
    assert len(expected_order) == steps
    assert_log_is_exact(run, steps)
    chance, done, runs, resumed = random.Random(seed), 0, 0, 0
    while done < kills:
        start_over(run)
        order.unlink()
        for _ in range(min(chance.randint(1, 4), kills - done)):
            was_begun, began = any(run.checkpoints.glob("step-*")), time.perf_counter()
            if not kill_after(chance.uniform(0, took), act):
                if not was_begun:
                    took = time.perf_counter() - began  # the machine is quicker now
                break
            done += 1
            resumed += bool(list(run.checkpoints.glob("step-*")))
        assert not kill_after(600, act)
        assert result(run, steps) == expected
        whole = [line for line in order.read_text().splitlines()]
        assert set(whole) == set(expected_order)  # a step done again is fed the same again
        assert_log_is_exact(run, steps)
        left = [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]
        assert left == []
        runs += 1
        print(f"{done} SIGKILLs in {runs} runs, {resumed} found a checkpoint: all the same bits")
    return done, runs, resumed


def test_five_kills_at_random_moments_change_no_bit(dataset, tiny_base):
    few = {"max_steps": 6, "prior_share": 0.0, "preview_every_steps": 100}
    kill_at_random(dataset, eventful(tiny_base, **few), 5, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize(("variant", "kills"), [("full", 100), ("lora", 20), ("text encoder", 20)])
def test_a_hundred_kills_at_random_moments_change_no_bit(dataset, tiny_base, variant, kills):
    done, _, resumed = kill_at_random(dataset, eventful(tiny_base, **VARIANTS[variant]), kills, 1)
    assert resumed > done / 4


# --- every operation of a save: crashes and refusals


def tiny_state():
    """All that a checkpoint holds, of a model of three numbers, after a step that gave the optimizer moments."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    named = dict(layer.named_parameters())
    return TrainState(named, optimizer, schedule, scaler, MovingAverage(named, 0.9, False))


def advance(state: TrainState, steps: int) -> None:
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.scaler.scale(sum(p.square().sum() for p in state.weights.values())).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.lr_scheduler.step()
        state.step += 1
        state.ema.update(state.step)


def everything(state: TrainState) -> list:
    kept = [p.detach() for p in state.weights.values()] + list(state.ema.average.values())
    moments = state.optimizer.state_dict()["state"].values()
    kept += [values[name] for values in moments for name in sorted(values)]
    numbers = [state.scaler.state_dict(), state.lr_scheduler.state_dict()["last_epoch"]]
    return [t.tolist() for t in kept] + numbers


BELONGS = TrainingSignature({"seed": 0}, "base", "data")


def save_at(run: Run, step: int) -> None:
    state = tiny_state()
    advance(state, step)
    kept = save(run, state, BELONGS, rows_to(step))
    checkpoint.prune(run, kept, keep=1, best_step=0)


def rows_to(step: int) -> list[dict]:
    return [{"step": i} for i in range(step + 1)]


def loaded(run: Run) -> int:
    """The step that is resumed from, whose state must be that step's to the bit."""
    state, expected = tiny_state(), tiny_state()
    resume(run, state, BELONGS)
    advance(expected, state.step)
    assert everything(state) == everything(expected)
    return state.step


@pytest.fixture
def saved(workplace):
    """A run with a checkpoint of step 2, and a function that brings it back to that."""
    run = Run("tiny")
    save_at(run, 2)
    shutil.copytree(run.folder, workplace / "before")

    def again():
        shutil.rmtree(run.folder)
        shutil.copytree(workplace / "before", run.folder)
        return run

    return again


def test_a_crash_before_or_after_each_operation_of_a_save_leaves_one_that_loads(saved):
    seen = []
    for number in count(1):
        run = saved()
        with faults.placed(faults.die_at(number)):
            status = faults.in_child(lambda run=run: save_at(run, 4))
        assert os.WIFSIGNALED(status) or status == 0
        seen.append(loaded(run))
        assert not [p for p in run.checkpoints.iterdir() if p.name.startswith(".")]
        save_at(run, 4)  # and it goes on, whatever was left
        assert loaded(run) == 4
        if status == 0:
            break
    print(f"{number - 1} crashes in a save: {seen.count(2)} found step 2, {seen.count(4)} step 4")
    assert number > 40 and seen == sorted(seen) and set(seen) == {2, 4}


@pytest.mark.parametrize("reason", faults.ERRNOS, ids=errno.errorcode.get)
def test_each_errno_at_each_operation_of_a_save_is_told_and_the_last_good_one_loads(saved, reason):
    for number in count(1):
        run = saved()
        with faults.placed(faults.fail_at(number, reason)):
            try:
                save_at(run, 4)
                break
            except RunError as error:
                assert_told(error, reason)
        assert loaded(run) in (2, 4)
        save_at(run, 4)
        assert loaded(run) == 4
    print(f"{number - 1} operations of a save refused with {errno.errorcode[reason]}")
    assert number > 20 and loaded(run) == 4


def assert_told(error: RunError, reason: int) -> None:
    """What, where, how much is free, and what to do next, in one line."""
    words = str(error)
    assert "\n" not in words and os.strerror(reason) in words and "runs/" in words
    assert "GB free there" in words or "does not answer" in words
    assert "run the notebook again" in words


def test_every_change_that_a_training_makes_goes_through_the_seam(dataset, tiny_base):
    outside = faults.changes_outside(dataset.folder, lambda: list(train(small(tiny_base), dataset)))
    # TensorBoard opens its file while a tracker starts, and writes it by a thread of its own
    assert [event for event in outside if "tensorboard" not in event[1]] == []


def test_a_full_disk_stops_a_save_and_the_last_one_loads(saved, tmp_path):
    """A tmpfs of a megabyte, filled up but for some bytes."""
    place = tmp_path / "small disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is refused here: it wants root")
    try:
        run = saved()
        shutil.copytree(run.folder, place / "tiny")
        shutil.rmtree(run.folder)
        run.folder.symlink_to(place / "tiny")
        filler, failures = place / "filler", 0
        for free in range(0, 60_000, 4096):
            filler.unlink(missing_ok=True)
            with filler.open("wb") as file:
                room = shutil.disk_usage(place).free
                file.write(b"x" * (room - free))
            try:
                save_at(run, 4)
                break
            except (RunError, OSError) as error:
                failures += 1
                if isinstance(error, RunError):
                    assert_told(error, errno.ENOSPC)
            filler.unlink()
            assert loaded(run) == 2
        assert failures >= 3 and loaded(run) == 4
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


# --- every operation of a whole training: the log, previews, config, checkpoints, verdict and model/


def refuse_each(run, config, stride, first) -> int:
    """Have every `stride`-th operation of a training refused, the errnos by turns; the number of refusals.

    Each is told in one line, and the rerun comes to the same bits as the undisturbed training.
    """
    list(train(config, run))
    expected = result(run, config.max_steps)
    start_over(run)
    refused = 0
    for number in count(first, stride):
        reason = faults.ERRNOS[refused % len(faults.ERRNOS)]
        seam, done = faults.fail_at(number, reason), []
        with faults.placed(seam):
            try:
                for step in train(config, run):
                    done.append(step.step)
                break
            except RunError as error:
                assert_told(error, reason)
        refused += 1
        steps = [row["step"] for row in lines(run.train_log)] if run.train_log.is_file() else []
        assert latest_step(run) >= max(done, default=0) - config.save_every_steps
        assert not done or steps[-1:] <= [done[-1] + 1]  # told within a step
        list(train(config, run))
        assert result(run, config.max_steps) == expected
        assert_log_is_exact(run, config.max_steps)
        start_over(run)
    return refused


@pytest.mark.soak
def test_a_training_whose_disk_refuses_stops_within_a_step_and_ends_in_the_same_bits(
    dataset, tiny_base
):
    config = small(tiny_base, max_steps=3, save_every_steps=1, prior_share=0.0)
    refused = refuse_each(dataset, config, stride=90, first=60)
    assert refused >= 2


@pytest.mark.soak
def test_each_operation_of_a_training_refused(dataset, tiny_base):
    config = small(tiny_base, max_steps=3, save_every_steps=1, prior_share=0.0)
    refused = refuse_each(dataset, config, stride=2, first=1)
    print(f"{refused} refusals in a training")
    assert refused >= 60


# --- what is found on the disk


def spoil_manifest(folder):
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:40])


def spoil_manifest_entry(folder):
    (folder / "manifest.json").write_text('{"weights.safetensors": 7}')


def name_a_file_outside(folder):
    files = json.loads((folder / "manifest.json").read_text())
    outside = folder.parent.parent / "notes.txt"
    outside.write_text("of somebody")
    entry = {"size": outside.stat().st_size, "sha256": sha256(outside)}
    write_json(folder / "manifest.json", files | {"../../notes.txt": entry})


def drop_manifest(folder):
    (folder / "manifest.json").unlink()


def cut_weights(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def spoil_state(folder):
    (folder / "state.json").write_text('{"format": 1, "step": 4, "gro')
    write_manifest(folder)


def change_step(folder):
    state = json.loads((folder / "state.json").read_text())
    write_json(folder / "state.json", state | {"step": 9})
    write_manifest(folder)


def lose_a_tensor(folder, name, key):
    tensors = load_file(folder / name)
    del tensors[key]
    save_file(tensors, folder / name)
    write_manifest(folder)


def lose_a_weight(folder):
    lose_a_tensor(folder, "weights.safetensors", "bias")


def lose_a_moment(folder):
    lose_a_tensor(folder, "optimizer.safetensors", "1.exp_avg_sq")


def lose_the_average(folder):
    (folder / "average.safetensors").unlink()
    write_manifest(folder)


def reshape_a_weight(folder):
    tensors = load_file(folder / "weights.safetensors")
    save_file(tensors | {"weight": torch.zeros(3, 2)}, folder / "weights.safetensors")
    write_manifest(folder)


def empty_manifest(folder):
    """And a bit is another, which nothing tells any more."""
    (folder / "manifest.json").write_text("{}")
    weights = folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def leave_out(name):
    def harm(folder):
        files = json.loads((folder / "manifest.json").read_text())
        del files[name]
        write_json(folder / "manifest.json", files)

    harm.__name__ = f"leave {name} out of the manifest"
    return harm


def rewrite_log(what, change):
    def harm(folder):
        path = folder / "train_log.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
        write_manifest(folder)

    harm.__name__ = f"a log {what}"
    return harm


def set_in_state(*names, to):
    """Another value in state.json, by the names that lead to it."""

    def harm(folder):
        state = inner = json.loads((folder / "state.json").read_text())
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = to
        write_json(folder / "state.json", state)
        write_manifest(folder)

    harm.__name__ = f"{'.'.join(map(str, names))} is {str(to)[:20]}"
    return harm


GARBAGE = (
    *(leave_out(f"{name}.safetensors") for name in ("weights", "optimizer", "average")),
    *(leave_out(name) for name in ("state.json", "train_log.jsonl")),
    rewrite_log("with a gap", lambda rows: rows[:1] + rows[2:]),
    rewrite_log("with a row twice", lambda rows: rows + rows[-1:]),
    rewrite_log("too short", lambda rows: rows[:-1]),
    rewrite_log("of garbage", lambda rows: ["\x00garbage\n", *rows[1:]]),
    rewrite_log("that is empty", lambda rows: []),
    *(
        set_in_state(name, to=to)
        for to in (None, 7, "x", [])
        for name in ("groups", "numbers", "schedule")
    ),
    *(set_in_state("schedule", "last_epoch", to=to) for to in (3, "4", None)),
    *(
        set_in_state("schedule", "_last_lr", to=to)
        for to in ("x", [], [None], [1e-3, 1e-3], 10**400)
    ),
    set_in_state("schedule", "_last_lr", to=[float("nan")]),
    *(set_in_state("scaler", to=to) for to in (7, "x", [1])),
    *(set_in_state("scaler", "scale", to=to) for to in ("x", 0, -1.0, float("inf"))),
    set_in_state("scaler", "_growth_tracker", to={}),
    set_in_state("numbers", to={"0.lr": "x"}),
    set_in_state("numbers", to={"no index": 1}),
    set_in_state("groups", 0, "params", to=[0]),
    set_in_state("moments", to=["x"]),
    set_in_state("config", to=7),
    set_in_state("parts", to=7),
    *(set_in_state("format", to=to) for to in ("1", None, [])),
)
DAMAGES = (
    *GARBAGE,
    spoil_manifest,
    empty_manifest,
    spoil_manifest_entry,
    name_a_file_outside,
    drop_manifest,
    cut_weights,
    spoil_state,
    change_step,
    lose_a_weight,
    lose_a_moment,
    lose_the_average,
    reshape_a_weight,
)


def save_two(run):
    """Checkpoints of steps 2 and 4, and beside them what Drive and kills leave."""
    for step in (2, 4):
        state = tiny_state()
        advance(state, step)
        save(run, state, BELONGS, rows_to(step))
    shutil.copytree(run.checkpoint(4), run.checkpoints / "step-000005 (1)")
    (run.checkpoints / ".step-000006.part").mkdir()
    (run.checkpoints / "step-000007").write_text("a file")


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(workplace, caplog, harm):
    run = Run("tiny")
    save_two(run)
    assert loaded(run) == 4 and not caplog.messages
    harm(run.checkpoint(4))
    assert loaded(run) == 2
    (line,) = caplog.messages
    assert "step-000004" in line and "the checkpoint before it is taken" in line
    assert latest_step(run) in (2, 4) and not (run.checkpoints / ".step-000006.part").exists()


def test_where_all_are_damaged_hours_are_not_begun_again_unasked(workplace):
    run = Run("tiny")
    save_two(run)
    cut_weights(run.checkpoint(4))
    spoil_manifest(run.checkpoint(2))
    with pytest.raises(
        RunError, match="no checkpoint can be read .*move .* to begin again"
    ) as told:
        loaded(run)
    assert "step-000002" in str(told.value) and "step-000004" in str(told.value)


def test_a_copy_under_another_name_alone_is_told_and_nothing_begun_again(workplace):
    run = Run("tiny")
    save_at(run, 4)
    run.checkpoint(4).rename(run.checkpoints / "step-000004 (1)")
    with pytest.raises(RunError, match=r"step-000004 \(1\) is not named as one"):
        loaded(run)


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_in_the_place_of_a_checkpoint_is_in_nobodys_way(workplace, target):
    run = Run("tiny")
    save_at(run, 2)
    run.checkpoint(2).rename(workplace / "elsewhere")
    run.checkpoint(2).symlink_to(workplace / target)
    run.checkpoint(4).symlink_to(workplace / "nowhere")
    save_at(run, 4)
    save_at(run, 6)
    assert loaded(run) == 6 and verifies_still(workplace / "elsewhere")


def verifies_still(folder):
    return find_corruption(folder) is None


def test_a_format_of_the_future_is_refused_and_nothing_older_taken(workplace):
    run = Run("tiny")
    save_two(run)
    state = json.loads((run.checkpoint(4) / "state.json").read_text())
    write_json(run.checkpoint(4) / "state.json", state | {"format": 2})
    write_manifest(run.checkpoint(4))
    with pytest.raises(RunError, match=r"newer version .*\(format 2, this one reads 1\): update"):
        loaded(run)


def test_what_a_kill_between_two_renames_left_aside_comes_back(workplace):
    run = Run("tiny")
    save_two(run)
    run.checkpoint(4).rename(run.checkpoints / ".step-000004.old")
    assert loaded(run) == 4


def test_a_damaged_checkpoint_does_not_count_among_those_kept(workplace):
    run = Run("tiny")
    save_two(run)
    cut_weights(run.checkpoint(4))
    state = tiny_state()
    advance(state, 5)
    kept = save(run, state, BELONGS, rows_to(5))
    checkpoint.prune(run, kept, keep=2, best_step=0)
    cut_weights(kept)
    assert loaded(run) == 2


OTHER = {
    "sweep": {"rank": [4, 8]},
    "run": "other",
    "base_model": "elsewhere",
    "mixed_precision": "fp16",
    "prompts": ("a",),
}
PRODUCT = ("train_batch_size", "gradient_accumulation_steps")


def other_value(name: str, value: object) -> object:
    if name in OTHER:
        return OTHER[name]
    options = TrainConfig.__dataclass_fields__[name].metadata.get("options")
    if options:
        return next(option for option in options if option != value)
    if isinstance(value, bool):
        return not value
    return type(value)(value * 2 or 1) if name != "ema_decay" else 0.5


@pytest.mark.parametrize("name", list(TrainConfig.__dataclass_fields__))
def test_another_setting_is_refused_by_name_unless_it_changes_nothing_learnt(workplace, name):
    before = TrainConfig()
    after = replace(before, **{name: other_value(name, getattr(before, name))})
    run, state = Run("tiny"), tiny_state()
    advance(state, 1)
    save(run, state, TrainingSignature(training_signature(before, 1), "base", "data"), rows_to(1))
    belongs = TrainingSignature(
        json.loads(json.dumps(training_signature(after, 1))), "base", "data"
    )
    resumable = [f.name for f in fields(TrainConfig) if f.metadata.get("resumable")]
    if name in (*resumable, "base_model") and name not in PRODUCT:
        state = tiny_state()
        resume(run, state, belongs)
        assert state.step == 1
        return
    told = "images_per_step" if name in PRODUCT else name
    was = "8" if name in PRODUCT else repr(getattr(before, name))
    with pytest.raises(RunError, match=f"{told} was {was}, not .*a run name of its own"):
        resume(run, tiny_state(), belongs)


@pytest.mark.parametrize("what", ["base_model", "dataset"])
def test_another_base_or_dataset_is_refused_by_name(workplace, what):
    run = Run("tiny")
    save_two(run)
    with pytest.raises(RunError, match=f"the {what.replace('_', ' ')} was another"):
        resume(run, tiny_state(), replace(BELONGS, **{what: "another"}))


@pytest.mark.parametrize("part", ["VAE", "text encoder", "noise schedule"])
def test_a_base_of_which_another_part_changed_is_refused_by_name(
    dataset, tiny_base, tmp_path, part
):
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    list(train(small(base), dataset))
    file = {
        "VAE": base / "vae/diffusion_pytorch_model.safetensors",
        "text encoder": base / "text_encoder/model.safetensors",
    }.get(part)
    if file:
        save_file({name: 1.5 * tensor for name, tensor in load_file(file).items()}, file)
    else:
        path = base / "scheduler/scheduler_config.json"
        write_json(path, json.loads(path.read_text()) | {"prediction_type": "v_prediction"})
    with pytest.raises(RunError, match=f"the base model's {part}.* was another"):
        list(train(small(base, max_steps=6), dataset))


def test_a_dataset_that_was_edited_is_told_before_anything_is_trained(dataset, tiny_base):
    list(train(small(tiny_base), dataset))
    path = dataset.split_metadata("train")
    path.write_text(path.read_text().replace("a picture", "a drawing"))
    with pytest.raises(RunError, match="metadata.csv is not what .* says: run 03_dataset again"):
        list(train(small(tiny_base, max_steps=6), dataset))


def test_settings_that_a_version_does_not_know_are_passed_over(dataset, tiny_base):
    list(train(small(tiny_base), dataset))
    write_json(dataset.config("train"), dataset.read_config("train") | {"of_tomorrow": 1})
    assert list(train(small(tiny_base), dataset)) == []


def test_a_flipped_bit_in_the_cache_is_computed_again(dataset, tiny_base):
    list(train(small(tiny_base), dataset))
    (path,) = dataset.cache.glob("train-images-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    start_over(dataset)
    list(train(small(tiny_base), dataset))
    assert path.read_bytes() == whole


def test_a_run_is_trained_by_one_process_at_a_time_and_twice_in_one(dataset, tiny_base):
    steps = train(small(tiny_base), dataset)
    next(steps)
    again = train(small(tiny_base), dataset)  # as a cell that is run again
    next(again)
    again.close()
    next(steps := train(small(tiny_base), dataset))

    def act():
        with pytest.raises(RunError, match="is trained by another process"):
            list(train(small(tiny_base), dataset))

    assert faults.in_child(act) == 0
    steps.close()
    assert faults.in_child(lambda: list(train(small(tiny_base), dataset))) == 0


def test_a_lock_of_a_process_is_held_until_its_last_holder_lets_go(tmp_path):
    path = tmp_path / ".lock"

    def is_free():
        with locked_by_process(path) as is_mine:
            os._exit(not is_mine)

    holders = [locked_by_process(path) for _ in range(3)]
    assert [holder.__enter__() for holder in holders] == [True] * 3
    for holder in holders:
        assert faults.in_child(is_free) != 0
        holder.__exit__(None, None, None)
    assert faults.in_child(is_free) == 0


def test_half_the_batch_and_twice_the_accumulation_is_the_same_training():
    halved = TrainConfig(train_batch_size=4, gradient_accumulation_steps=2)
    assert training_signature(halved, 1) == training_signature(TrainConfig(), 1)
    assert training_signature(
        replace(halved, gradient_accumulation_steps=1), 2
    ) == training_signature(halved, 1)
    bucketed = [replace(c, aspect_ratio_buckets=True) for c in (halved, TrainConfig())]
    assert training_signature(bucketed[0], 1) != training_signature(bucketed[1], 1)
    assert training_signature(bucketed[0], 2) != training_signature(bucketed[1], 1)


# --- a training's log, times and settings, resumed


def test_whatever_became_of_the_log_each_step_is_in_it_once(dataset, tiny_base):
    config = small(tiny_base, max_steps=9, prior_share=0.0, preview_every_steps=100)
    train_until(config, dataset, 3)
    for step, harm in ((5, "gap"), (7, "half line"), (8, "none"), (9, "twice")):
        rows = dataset.train_log.read_text().splitlines(keepends=True)
        left = {
            "gap": rows[:1] + rows[3:],
            "half line": [*rows, '{"step": 4, "lo'],
            "twice": rows * 2,
        }
        if harm == "none":
            dataset.train_log.unlink()
        else:
            dataset.train_log.write_text("".join(left[harm]))
        train_until(config, dataset, step)
        assert [row["step"] for row in lines(dataset.train_log)] == list(range(step + 1))
    list(train(config, dataset))
    assert_log_is_exact(dataset, 9)


def test_a_log_that_somebody_cut_while_it_trained_is_whole_in_each_checkpoint(dataset, tiny_base):
    config = small(tiny_base, prior_share=0.0, preview_every_steps=100)
    for step in train(config, dataset):
        if step.step == 1:
            dataset.train_log.unlink()
        elif step.step == 3:
            dataset.train_log.write_text("\x00\x00")
    for folder in (dataset.folder, dataset.checkpoint(4)):
        assert [row["step"] for row in lines(folder / "train_log.jsonl")] == list(range(5))


def test_of_a_log_that_is_damaged_the_rows_that_are_left_are_read(tmp_path):
    path = tmp_path / "train_log.jsonl"
    path.write_text(
        '{"step": 0}\n\x00\x00\n[1]\n{"loss": 1}\n{"step": "1"}\n\n{"step": 2}\n{"step": 3'
    )
    assert read_log(path) == [{"step": 0}, {"step": 2}]


GARBAGE_TEXTS = ("", "\x00\x00", '{"base": 1', "[1]", "7", "{}", "[" * 100_000)


@pytest.mark.parametrize("text", GARBAGE_TEXTS, ids=range(len(GARBAGE_TEXTS)))
def test_a_verdict_settings_and_times_that_are_garbage_are_told_and_made_anew(
    dataset, tiny_base, text
):
    config = small(tiny_base, prior_share=0.0)
    list(train(config, dataset))
    said, kept = finish.verify_model(dataset), json.loads(dataset.config("train").read_text())
    dataset.verdict.write_text(text)
    with pytest.raises(RunError, match=r"verdict.json is damaged: move it away and run 04_train"):
        finish.verify_model(dataset)
    dataset.config("train").write_text(text)
    dataset.seconds.write_text(text)
    assert list(train(config, dataset)) == [] and finish.verify_model(dataset) == said
    assert json.loads(dataset.config("train").read_text()) == kept
    assert dataset.read_seconds()["train"] > 0
    dataset.config("dataset").write_text(text)
    with pytest.raises(RunError, match=r"dataset.json is damaged.* run 03_dataset"):
        list(train(replace(config, max_steps=6), dataset))


def test_a_preview_that_is_none_stops_no_rerun(dataset, tiny_base, caplog):
    list(train(small(tiny_base, prior_share=0.0), dataset))
    whole = dataset.preview(4).read_bytes()
    dataset.preview(0).write_bytes(whole[:100])
    dataset.preview(4).write_text("no picture")
    (dataset.previews / "step-000004 (1).png").write_bytes(whole)
    (dataset.previews / "step-last.png").write_bytes(whole)
    list(train(small(tiny_base, prior_share=0.0, max_steps=6), dataset))
    assert caplog.text.count("cannot be read, and is not shown") == 2
    found = [path.name for path in dataset.preview_files()]
    assert found == sorted(found) and found[-1] == "step-000006.png" and "(1)" not in "".join(found)
    assert_log_is_exact(dataset, 6)


def test_minutes_save_as_well_as_steps(dataset, tiny_base):
    often = {"save_every_steps": 1000, "validate_every_steps": 1000, "preview_every_steps": 1000}
    config = small(tiny_base, **often, prior_share=0.0, save_every_minutes=1e-6)
    train_until(config, dataset, 2)
    assert latest_step(dataset) == 2
    list(train(small(tiny_base, **often, prior_share=0.0, save_every_minutes=0.0), dataset))
    names = {path.name for path in dataset.checkpoints.iterdir()}
    assert names == {"step-000002", "step-000004"} or names == {
        "step-000001",
        "step-000002",
        "step-000004",
    }


def test_a_longer_training_goes_on_at_the_rate_of_the_longer_one_and_says_so(
    dataset, tiny_base, caplog
):
    plain = {"prior_share": 0.0, "preview_every_steps": 100, "lr_warmup_steps": 0}
    list(train(small(tiny_base, **plain), dataset))
    assert lines(dataset.train_log)[-1]["learning_rate"] == 0  # a cosine's end
    caplog.clear()
    list(train(small(tiny_base, **plain, max_steps=8), dataset))
    assert "max_steps is 8 now: the learning rate goes on from step 4 at 0.0005" in caplog.text
    rates = {row["step"]: row["learning_rate"] for row in lines(dataset.train_log)}
    assert 0.00045 > rates[5] > rates[6] > rates[7] > rates[8] == 0
    assert_log_is_exact(dataset, 8)


# --- interrupts: real signals to real processes


def wait_for_step(run: Run, step: int, pid: int) -> None:
    """Wait until the log of a training has a row of `step`, or the process has ended."""
    ended = os.pidfd_open(pid)
    while not select.select([ended], [], [], 0.02)[0]:
        if run.train_log.is_file() and run.train_log.read_text().count("\n") > step:
            break
    os.close(ended)


def signalled(config, run, act, numbers=(signal.SIGTERM,)) -> tuple[int, str]:
    """Run `act` in a child until its log has a row of step 3, send it signals; (exit code, what it said)."""
    reading, writing = os.pipe()

    def heard():
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(writing, "w", buffering=1)
        act()

    pid = forked(heard)
    os.close(writing)
    wait_for_step(run, 3, pid)
    for number in numbers:
        os.kill(pid, number)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with os.fdopen(reading) as said:
        return code, said.read()


@pytest.fixture
def long(dataset, tiny_base):
    """A training that takes long enough to be stopped, and saves at no step by itself."""
    more = {"save_every_steps": 1000, "validate_every_steps": 1000, "preview_every_steps": 1000}
    return small(tiny_base, **more, prior_share=0.0, max_steps=300)


def command_line(config, monkeypatch):
    from helpers.core.process import run_command
    from helpers.train.__main__ import main

    names = ("base_model", "max_steps", "save_every_steps", "validate_every_steps", "prior_share")
    names += ("preview_every_steps", "train_batch_size", "resolution_px", "num_inference_steps")
    given = {name: getattr(config, name) for name in names}
    monkeypatch.setattr("sys.argv", ["helpers.train", "pictures", *typed(given)])
    return lambda: run_command(main)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM,), 143),
        ((signal.SIGINT, signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_a_signal_saves_the_last_step_once_and_says_how_to_go_on(
    dataset, long, monkeypatch, numbers, code
):
    main = command_line(long, monkeypatch)
    left, said = signalled(long, dataset, main, numbers)
    step = latest_step(dataset)
    assert left == code and step >= 3, said
    last = said.strip().splitlines()[-1]
    assert last == f"stopped after step {step} of 300, which is kept: run 04_train again to go on"
    assert "Traceback" not in said
    assert [row["step"] for row in lines(dataset.train_log)] == list(range(step + 1))


def test_a_stop_has_the_mirror_take_what_was_saved_before_the_process_ends(
    dataset, long, monkeypatch, tmp_path
):
    own = Place(tmp_path / "mirror", "a folder", is_made=True)
    monkeypatch.setattr(here, "MIRROR", own)
    left, said = signalled(long, dataset, command_line(long, monkeypatch))
    step = latest_step(dataset)
    assert left == 143 and said.strip().splitlines()[-1].startswith(f"stopped after step {step}")
    assert f"up to step {step}, " in said and "all of it read back" in said
    there = tmp_path / "mirror" / FOLDER / "pictures"
    assert find_corruption(there / "checkpoints" / dataset.checkpoint(step).name) is None


def test_a_drive_that_hangs_keeps_no_stopped_process_from_ending(
    dataset, long, monkeypatch, tmp_path
):
    monkeypatch.setattr("helpers.train.__main__.STOP_S", 1.0)
    own = Place(tmp_path / "mirror", "a folder", is_made=True)
    monkeypatch.setattr(here, "MIRROR", own)
    monkeypatch.setattr(sync, "sync", lambda run: time.sleep(60))
    left, said = signalled(long, dataset, command_line(long, monkeypatch))
    assert left == 143 and "NOT all on" in said and "there was no time" in said


def test_a_stop_between_two_steps_saves_at_once_and_handlers_are_put_back(dataset, long):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    steps = train(long, dataset)
    for _ in range(3):
        last = next(steps).step
    with pytest.raises(Stopped, match=f"stopped after step {last} of 300, which is kept"):
        signal.raise_signal(signal.SIGINT)
    assert latest_step(dataset) == last
    assert next(steps).step == last + 1  # whoever still holds it may go on
    steps.close()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert next(train(long, dataset)).step == last + 1


def test_a_stop_in_the_middle_of_a_step_waits_for_its_end(dataset, long, monkeypatch):
    real = trainer.optimizer_step

    def interrupted(training, state, batch):
        found = real(training, state, batch)
        if state.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)  # and a second one changes nothing
        return found

    monkeypatch.setattr(trainer, "optimizer_step", interrupted)
    with pytest.raises(Stopped, match="stopped after step 2 of 300") as stopped:
        list(train(long, dataset))
    assert stopped.value.signal == signal.SIGINT and latest_step(dataset) == 2


def test_in_another_thread_training_leaves_signals_alone(dataset, tiny_base):
    from concurrent.futures import ThreadPoolExecutor

    config = small(tiny_base, prior_share=0.0, max_steps=1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: len(list(train(config, dataset)))).result() == 2


# --- a real kernel: the stop button


@contextmanager
def kernel(folder: Path):
    """A Jupyter kernel in a folder, as 04_train's would be."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(folder))
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def say(client, code: str, hear=lambda text: None) -> tuple[str, list[dict]]:
    """Execute a cell; what it printed, and the errors that it showed. `hear` is given each thing as it is printed."""
    printed, errors = [], []

    def output(message):
        content = message["content"]
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            printed.append(content["text"])
            hear(content["text"])
        elif message["msg_type"] == "error":
            errors.append(content)

    client.execute_interactive(code, output_hook=output, timeout=300)
    return "".join(printed), errors


CELLS = """
import torch; torch.set_num_threads(1)
from helpers.config import TrainConfig, configure
from helpers.core.run import Run
from helpers.train.trainer import train
config = configure(TrainConfig, {more!r})
here = Run("pictures")
steps = train(config, here)
print(next(steps))
"""
WATCH = """
import hashlib
for step in steps:
    print("at", step.step, flush=True)
"""


@pytest.mark.soak
def test_the_stop_button_saves_shows_one_line_and_a_rerun_ends_in_the_same_bits(dataset, tiny_base):
    more = EVENTFUL | {"run": "pictures", "base_model": str(tiny_base), "max_steps": 60}
    more |= {"save_every_steps": 1000, "validate_every_steps": 1000, "preview_every_steps": 1000}
    config = configure(TrainConfig, more)
    list(train(config, dataset))
    expected = result(dataset, 60)
    start_over(dataset)
    with kernel(Path.cwd()) as (manager, client):
        assert "step=0" in say(client, CELLS.format(more=more))[0]

        def stop_at_five(text):
            if "at 5\n" in text:
                manager.interrupt_kernel()

        seen, (error,) = say(client, WATCH, stop_at_five)
        step = latest_step(dataset)
        line = (
            f"Stopped: stopped after step {step} of 60, which is kept: run 04_train again to go on"
        )
        assert error["traceback"] == [line] and 5 <= step < 60
        seen, errors = say(client, CELLS.format(more=more) + WATCH)
        assert not errors and f"step={step + 1}" in seen and "at 60" in seen
    assert result(dataset, 60) == expected
    assert_log_is_exact(dataset, 60)


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_papermill_reaches_the_training_which_saves_and_the_mirror_takes_it(
    dataset, tiny_base, number, tmp_path
):
    more = {k: v for k, v in SMALL_TRAINING.items() if k not in ("max_steps", "resolution_px")}
    more |= {"save_every_steps": 1000, "validate_every_steps": 1000, "preview_every_steps": 1000}
    more.pop("train_batch_size")
    given = {"base_model": tiny_base, "max_steps": 3000, "train_batch_size": 2, "resolution_px": 32}
    command = [sys.executable, "-m", "helpers.batch", "pictures", "--only", "04", *typed(given)]
    command += ["-p", "more", repr(more | {"prior_share": 0.0})]
    mirrored = os.environ | {"RUNS_MIRROR": str(tmp_path / "mirror")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    child = subprocess.Popen(command, env=mirrored, **pipes)
    wait_for_step(dataset, 3, child.pid)
    child.send_signal(number)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 128 + number and "Traceback" not in said, said
    assert "go on" in said.strip().splitlines()[-1]
    assert (step := latest_step(dataset)) >= 3 and f"up to step {step}, " in said, said
    there = tmp_path / "mirror" / FOLDER / "pictures"
    assert find_corruption(there / "checkpoints" / dataset.checkpoint(step).name) is None


# --- another number of processes


def start_two(given: dict) -> subprocess.Popen:
    """Two CPU processes by gloo."""
    launch = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()]
    return subprocess.Popen(
        [*launch, "-m", "helpers.train", "pictures", *typed(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.soak
def test_two_processes_are_stopped_then_killed_and_one_goes_on_in_the_same_order(
    dataset, tiny_base
):
    rarely = {name: 1000 for name in ("validate_every_steps", "preview_every_steps")}
    more = SMALL_TRAINING | rarely | {"max_steps": 200, "save_every_steps": 20, "prior_share": 0.0}
    whole = more | {"train_batch_size": 4}
    alone = configure(TrainConfig, whole, run="pictures", base_model=str(tiny_base))
    list(train(alone, dataset))
    undisturbed = lines(dataset.train_log)
    start_over(dataset)
    given = more | {"base_model": tiny_base, "train_batch_size": 2}
    child = start_two(given)
    wait_for_step(dataset, 7, child.pid)
    child.terminate()
    said = child.communicate(timeout=120)[0]
    stopped = latest_step(dataset)
    assert stopped >= 7 and f"stopped after step {stopped} of 200, which is kept" in said, said
    child = start_two(given)
    wait_for_step(dataset, stopped + 25, child.pid)
    launcher = psutil.Process(child.pid)
    for process in [*launcher.children(recursive=True), launcher]:  # each has a session of its own
        process.kill()
    child.communicate()
    assert stopped < latest_step(dataset) < 200
    with pytest.raises(RunError, match="images_per_step was 4, not 2; that is train_batch_size x"):
        list(train(replace(alone, train_batch_size=2), dataset))
    list(train(alone, dataset))
    assert_log_is_exact(dataset, 200)
    for one, other in zip(undisturbed[1:40], lines(dataset.train_log)[1:40], strict=True):
        assert abs(one["loss"] - other["loss"]) < 1e-3
    gaps = [
        abs(a["loss"] - b["loss"])
        for a, b in zip(undisturbed[1:], lines(dataset.train_log)[1:], strict=True)
    ]
    print(f"the two losses are never further apart than {max(gaps):.2g}")


# --- for ever


def test_the_golden_checkpoint_resumes_and_comes_to_what_was_recorded(workplace):
    """As near as the rounding of other machines' kernels lets it, which Adam magnifies."""
    golden = golden_folder(1)
    shutil.copytree(golden / "base", workplace / "base")
    shutil.copytree(golden / "run", workplace / "runs/golden")
    run, config = Run("golden"), configure(TrainConfig, {"base_model": "base", **SETTINGS})
    before = tree_hash(golden)
    steps = list(train(config, run))
    expected = json.loads((golden / "expected.json").read_text())
    assert [step.step for step in steps] == [4, 5, 6]
    assert [step.loss for step in steps] == pytest.approx(expected["losses"], rel=1e-3)
    recorded, weights = load_file(golden / "expected.safetensors"), final_weights(run)
    assert recorded.keys() == weights.keys() and len(weights) > 20
    for name, tensor in recorded.items():
        assert torch.allclose(weights[name], tensor, atol=2e-4), name
    kept = load_file(golden / "run/checkpoints/step-000003/weights.safetensors")
    assert not all(torch.allclose(kept[name], weights[name], atol=2e-4) for name in kept)
    assert [row["step"] for row in lines(run.train_log)] == list(range(7))
    assert tree_hash(golden) == before


def tree_hash(folder: Path) -> dict[str, str]:
    return {str(p): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_format_that_is_read_has_its_golden_checkpoint():
    for number in range(1, checkpoint.FORMAT + 1):
        assert golden_folder(number).is_dir()
