"""Sweeps: what is tried, that kills change nothing, that workers share, and what is seen of it."""

import json
import os
import random
import re
import shutil
import signal
import sys
from collections import Counter
from itertools import count

import pytest
import torch
from sqlalchemy import create_engine

from helpers.config import TrainConfig, configure
from helpers.core.errors import ElsewhereError, RunError
from helpers.core.files import find_corruption, folder_hash
from helpers.core.run import Run
from helpers.figures.trials import best_trial, plot_trials, read_trials, stack_previews, table
from helpers.host import here
from helpers.mirror import sync
from helpers.train import trainer
from helpers.train.finish import verify_model
from helpers.train.limits import machine_errors
from helpers.train.sweep import runner, study, trial
from helpers.train.sweep.promote import promote
from helpers.train.sweep.runner import describe, run_trials, sweep_if_asked
from helpers.train.sweep.search import plan_trials, trial_config
from helpers.train.sweep.study import SECRET, Database, open_place
from helpers.train.trainer import train
from tests.conftest import SMALL_TRAINING, lines, make_dataset, photograph
from tests.drive import mounted
from tests.kills import forked, is_operation
from tests.postgres import postgres

RATES = {"learning_rate": [1e-6, 1.0, 3e-3]}  # far too low, far too high, good
RANGE = {"learning_rate": "1e-5..1e-2", "rank": [4, 8]}


def settings(base="assets/tiny-sd", **more):
    given = {"run": "pictures", "base_model": str(base), "prior_share": 0.0, **SMALL_TRAINING}
    given |= {"preview_every_steps": 8, "tracker": "none", "prompts": ("a place",)}
    return configure(TrainConfig, given | {"max_steps": 8, "sweep": RATES, **more})


def figures(run):
    """What two sweeps must have alike."""
    rows = [(r.number, r.state, r.params, r.value, r.curve, r.reason) for r in read_trials(run)]
    return sorted(rows, key=lambda row: row[0])


@pytest.fixture(scope="module")
def swept_folder(tmp_path_factory, tiny_base):
    """A run, `pictures`, that was swept undisturbed, as `pictures`, and one that was not, as `fresh`."""
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i in range(12):
            photograph(folder / f"in/{i}.jpg", i).with_suffix(".txt").write_text(f"thing {i}")
        fresh = make_dataset("pictures", folder / "in")
        shutil.copytree(fresh.folder, folder / "fresh")
        said, caches = [], []
        for line in run_trials(settings(tiny_base), fresh):
            said.append(line)
            caches.append({p.name: p.stat().st_mtime_ns for p in fresh.cache.glob("*")})
        (folder / "said.json").write_text(json.dumps([said, caches]))
    return folder


@pytest.fixture
def swept(swept_folder, workplace):
    shutil.copytree(swept_folder / "runs", workplace / "runs")
    return Run("pictures")


@pytest.fixture
def fresh(swept_folder, workplace):
    shutil.copytree(swept_folder / "fresh", workplace / "runs/pictures")
    shutil.copytree(swept_folder / "runs/pictures", workplace / "runs/undisturbed")
    return Run("pictures")


# what is tried


def test_ranges_are_spread_evenly_and_more_trials_begin_with_the_same():
    eight = plan_trials(settings(sweep=RANGE, sweep_trials=8))
    assert eight == plan_trials(settings(sweep=RANGE, sweep_trials=16))[:8]
    assert Counter(t["rank"] for t in eight) == {4: 4, 8: 4}
    decades = Counter(str(t["learning_rate"] >= d) for t in eight for d in (1e-4, 1e-3))
    assert 4 <= decades["True"] <= 12 and len({t["learning_rate"] for t in eight}) == 8
    assert all(1e-5 <= t["learning_rate"] <= 1e-2 for t in eight)


def test_a_sweep_that_an_older_version_began_goes_on_with_the_same_points():
    points = plan_trials(settings(sweep=RANGE | {"caption_dropout": "0.0..0.3"}, sweep_trials=3))
    assert [tuple(point.values()) for point in points] == [
        (0.00356, 8, 0.109),
        (1.46e-05, 4, 0.267),
        (0.000101, 8, 0.001),
    ]
    lists = plan_trials(settings(sweep=RATES | {"rank": [4, 8]}, sweep_trials=3))
    assert [tuple(t.values()) for t in lists] == [(0.003, 4), (1.0, 4), (1e-06, 8)]


def test_numbers_are_told_apart_however_narrow_their_range():
    narrow = settings(sweep={"ema_decay": "0.999..0.99999"}, use_ema=True)
    assert len({t["ema_decay"] for t in plan_trials(narrow)}) == 8


@pytest.mark.parametrize("more", range(2, 10))
def test_more_trials_of_lists_begin_with_the_same(more):
    asked = {"learning_rate": [1e-4, 1e-3, 1e-2], "rank": [4, 8, 16]}
    fewer = plan_trials(settings(sweep=asked, sweep_trials=more - 1))
    assert plan_trials(settings(sweep=asked, sweep_trials=more))[: more - 1] == fewer


def test_the_seeds_own_wish_can_be_swept():
    trials = plan_trials(settings(sweep={"gradient_accumulation_steps": [1, 4]}))
    configs = [trial_config(settings(max_steps=32), params) for params in trials]
    assert sorted(c.max_steps for c in configs) == [8, 32]
    assert {c.effective_batch_size * c.max_steps for c in configs} == {64}


def test_lists_are_tried_in_every_combination_or_some_of_them():
    asked = {"learning_rate": [1e-4, 1e-3], "rank": [4, 8], "method": ["full", "lora"]}
    assert len(plan_trials(settings(sweep=asked))) == 8
    some = plan_trials(settings(sweep=asked, sweep_trials=5))
    assert len({str(t) for t in some}) == 5


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_every_trial_sees_as_many_images_and_is_measured_as_often(batch):
    config = settings(max_steps=96, train_batch_size=2, lr_warmup_steps=12, validate_every_steps=12)
    trial = trial_config(config, {"effective_batch": batch})
    assert trial.effective_batch_size == batch and trial.train_batch_size <= 2
    assert trial.max_steps * batch == 96 * 2
    assert trial.lr_warmup_steps * batch == pytest.approx(12 * 2, abs=batch)
    assert trial.max_steps // trial.validate_every_steps == 8
    assert trial.seed == config.seed


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"learning_rat": "1..2"}, "which cannot be swept: did you mean learning_rate?"),
        ({"seed": [1, 2]}, "sets the order of images and the noise"),
        ({"max_steps": [10, 20]}, "as many images"),
        ({"vae": ["mine", "theirs"]}, "different latents cannot be compared"),
        ({"learning_rate": 1e-3}, "give a range as in"),
        ({"learning_rate": "1e-3..1e-5"}, "give a range as in"),
        ({"rank": "4..many"}, "give a range as in"),
        ({"learning_rate": [1e-3, 7.0]}, "learning_rate is 7.0: give a number"),
        ({"method": ["full", "dreambooth"]}, "choose one of full, lora"),
        ({"validation_pairs": [8, 256]}, "cannot be compared"),
        ({"effective_batch": [0, 4]}, "0 among its values"),
        ({"effective_batch": [2.5, 4]}, "2.5 among its values"),
        ({"effective_batch": "-4..4"}, "give a range as in"),
        ({"learning_rate": [[1e-3]]}, "[0.001] among its values"),
        ({"effective_batch": [4], "train_batch_size": [2]}, "leave one of them out"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(asked, words):
    with pytest.raises(RunError, match=re.escape(words)) as caught:
        plan_trials(settings(sweep=asked))
    assert "\n" not in str(caught.value)


def test_what_a_sweep_will_take_is_told_before_in_time_and_dollars(fresh, tiny_base):
    said = describe(settings(tiny_base, usd_per_hour=900.0), fresh)
    minutes, usd = map(float, re.search(r"(\d+) min at most, ([\d.]+) USD", said).groups())
    assert said.startswith("3 trials of 16 images") and usd > 0 and abs(usd / 15 - minutes) <= 1
    assert "USD" not in describe(settings(tiny_base), fresh)


# one machine


def test_it_ranks_low_good_and_high_rates_and_stops_the_diverging_one_early(swept):
    rows = read_trials(swept)
    assert [row.params["learning_rate"] for row in rows] == [3e-3, 1e-6, 1.0]
    good, low, high = rows
    assert (good.state, low.state, high.state) == ("complete", "complete", "pruned")
    assert good.value < 0.95 * low.value and high.images < 16 / 2
    assert "above the base model's" in high.reason or "NaN or inf" in high.reason


def test_the_second_trial_computes_no_latent_again(swept_folder):
    said, caches = json.loads((swept_folder / "said.json").read_text())
    first_end = next(i for i, line in enumerate(said) if line.startswith("trial 0 ended"))
    assert caches[first_end] and all(cache == caches[first_end] for cache in caches[first_end:])


def test_of_the_ended_trials_the_best_alone_keeps_its_model_and_state(swept):
    kept = [row.number for row in read_trials(swept) if swept.trial(row.number).model.exists()]
    assert kept == [best_trial(read_trials(swept)).number]
    states = [folder.parent.name for folder in swept.sweep.glob("trial-*/checkpoints")]
    assert states == [f"trial-{kept[0]:03d}"]


def test_a_best_model_that_was_lost_is_trained_again_to_the_same(swept, tiny_base):
    best, before = swept.trial(best_trial(read_trials(swept)).number), figures(swept)
    was = folder_hash(best.model)
    shutil.rmtree(best.folder)
    assert "is trained again" in "".join(run_trials(settings(tiny_base), swept))
    assert folder_hash(best.model) == was and figures(swept) == before


def test_a_trial_that_needs_too_much_memory_is_told_and_stops_no_other(
    fresh, tiny_base, monkeypatch
):
    real = trial.train

    def greedy(config, run):
        if config.learning_rate == 3e-3:
            with machine_errors(config):
                raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(config, run)

    monkeypatch.setattr(trial, "train", greedy)
    list(run_trials(settings(tiny_base, sweep={"learning_rate": [3e-3, 1e-6]}), fresh))
    rows = {row.params["learning_rate"]: row for row in read_trials(fresh)}
    assert rows[3e-3].state == "pruned" and "gradient_checkpointing" in rows[3e-3].reason
    assert rows[1e-6].state == "complete"


def test_a_fresh_machine_with_nothing_but_the_mirror_goes_on_in_the_middle_of_a_trial(
    fresh, swept_folder, tiny_base, monkeypatch
):
    monkeypatch.setattr(here, "MIRROR", mounted(swept_folder.parent / "cloud"))
    monkeypatch.setattr(sync, "_mirrors", {})
    here.MIRROR.path.mkdir()
    config = settings(tiny_base)

    def act():
        trainer.sync_soon = trial.sync_soon = sync.sync  # as if Drive were quick
        sync.sync(fresh)
        list(run_trials(config, fresh))

    at = iter(range(2))  # the second trial's second checkpoint
    assert in_child(act, die_when=lambda *e: is_second_checkpoint(*e) and next(at)) == "killed"
    shutil.rmtree(fresh.folder)
    assert "files restored" in sync.restore(fresh)
    said = list(run_trials(config, fresh))
    assert [line for line in said if "steps" in line][0].endswith("goes on from step 2")
    assert figures(fresh) == figures(Run("undisturbed"))
    for row in read_trials(fresh):
        steps = [line["step"] for line in lines(fresh.trial(row.number).train_log)]
        assert steps == list(range(row.steps + 1))
    assert stack_previews(fresh, read_trials(fresh)).height > 3 * 160  # those of ended trials too
    on_drive = {
        path.parent.parent.name for path in here.MIRROR.path.rglob("trial-*/*/manifest.json")
    }
    assert on_drive == {f"trial-{best_trial(read_trials(fresh)).number:03d}"}


def test_a_rerun_of_an_ended_sweep_trains_nothing(swept, tiny_base):
    before = figures(swept)
    assert list(run_trials(settings(tiny_base), swept)) == [] and figures(swept) == before


def test_another_sweep_in_the_same_run_is_refused(swept, tiny_base):
    for other in ({"sweep": RANGE}, {"weight_decay": 0.5}):
        with pytest.raises(RunError, match="is another sweep .* was .*: give this one a run name"):
            list(run_trials(settings(tiny_base, **other), swept))


@pytest.mark.parametrize(
    "tiny_base", ["SD 1", pytest.param("SDXL", marks=pytest.mark.soak)], indirect=True
)
def test_kills_at_any_moment_change_nothing(swept, swept_folder, tiny_base):
    """Four on three trials; `make soak` has twenty on eight."""
    kill_and_compare(settings(tiny_base), swept, swept_folder, kills=4)


@pytest.mark.soak
def test_twenty_kills_through_eight_trials_change_nothing(fresh, swept_folder, tiny_base):
    config = settings(tiny_base, sweep={"learning_rate": "1e-5..1"}, sweep_trials=8, max_steps=16)
    list(run_trials(config, fresh))
    kill_and_compare(config, fresh, swept_folder, kills=20)


def kill_and_compare(config, run, swept_folder, kills):
    """Sweep again from the start, with a SIGKILL before some random file operations, and compare."""
    undisturbed = figures(run)
    shutil.rmtree(run.folder)
    shutil.copytree(swept_folder / "fresh", run.folder)
    source, done = random.Random(0), 0
    while in_child(lambda: list(run_trials(config, run)), source.randint(10, 110)) == "killed":
        done += 1
        if done % 4 == 0 and run.sweep_journal.is_file():
            with run.sweep_journal.open("ab") as file:
                file.write(b'{"op_code":6,"worker_id')  # what a kill within a write leaves
        if done == kills:
            list(run_trials(config, run))
            break
    assert done == kills
    assert figures(run) == undisturbed
    ended = Counter()
    for line in lines(run.sweep_journal):
        ended[line.get("trial_id")] += line["op_code"] == 6 and line["state"] in (1, 2, 3)
    del ended[None]
    assert set(ended.values()) == {1} and len(ended) == len(undisturbed)
    for row in read_trials(run):
        steps = [line["step"] for line in lines(run.trial(row.number).train_log)]
        assert steps == list(range(row.steps + 1))


def in_child(act, die_at=None, die_when=lambda event, args: False):
    """How a child process that acts ends: "killed", before its n-th file operation or one it is told, or "done"."""
    counter = count(1)

    def hook(event, args):
        if is_operation(event, args) and (next(counter) == die_at or die_when(event, args)):
            os.kill(os.getpid(), signal.SIGKILL)

    return ended(forked(lambda: (sys.addaudithook(hook), act())))


def ended(pid):
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    assert os.WEXITSTATUS(status) == 0
    return "done"


# what comes of it


def test_the_best_trial_becomes_the_runs_own_training(swept, tiny_base):
    best = best_trial(read_trials(swept))
    said = promote(swept)
    assert f"trial {best.number}: learning_rate 0.003" in said
    assert "is complete: validation loss" in verify_model(swept)
    config = TrainConfig(**swept.read_config("train"))
    assert config.learning_rate == 3e-3 and list(train(config, swept)) == []
    assert [row["step"] for row in lines(swept.train_log)] == list(range(9))
    assert swept.preview_files() and promote(swept) == said
    more = configure(TrainConfig, swept.read_config("train") | {"max_steps": 9})
    assert [step.step for step in train(more, swept)] == [9]  # and goes on as one
    assert find_corruption(swept.trial(best.number).model) is None


def test_a_training_that_was_there_is_moved_beside(swept):
    swept.model.mkdir()
    (swept.model / "mine.txt").write_text("mine")
    promote(swept)
    assert (swept.sweep / "before-0/model/mine.txt").read_text() == "mine"


def test_trials_are_seen_in_a_table_and_pictures(swept):
    rows = read_trials(swept)
    assert list(table(rows)["state"]) == ["complete", "complete", "pruned"]
    assert plot_trials(rows).width > 500
    sheet = stack_previews(swept, rows)
    assert sheet.height > 3 * 160


def test_without_a_sweep_the_settings_stay_as_they_are(workplace):
    config = settings(sweep={})
    assert sweep_if_asked(config, Run("none")) is config


# many machines


def worker(config, run, said, die_when=None):
    """A worker in a process of its own; what it says is in `said`."""

    def act():
        with said.open("w") as file:
            for line in run_trials(config, run):
                file.write(line + "\n")
                file.flush()

    how = die_when or (lambda *_: False)
    return forked(lambda: sys.exit(0 if in_child(act, die_when=how) == "done" else 9))


def is_second_checkpoint(event, args):
    return event == "os.rename" and str(args[1]).endswith("step-000004")


def test_two_workers_on_one_postgresql_share_and_take_over(
    fresh, tiny_base, workplace, monkeypatch
):
    with postgres() as address:
        monkeypatch.setenv(SECRET, address)
        two_rates = {"learning_rate": [1e-6, 3e-3]}
        config = settings(tiny_base, sweep=two_rates, sweep_storage="postgresql")
        files = [workplace / "one.txt", workplace / "two.txt"]
        one = worker(config, fresh, files[0], is_second_checkpoint)
        two = worker(config, fresh, files[1])
        ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (one, two)]
        assert ends == [9, 0]
        assert list(run_trials(config, fresh)) == []
    said = [file.read_text() for file in files]
    began = [line for text in said for line in text.splitlines() if " steps" in line]
    assert len(began) == 2 + 1  # each once, and the one that was taken over
    assert "goes on from step 2" in said[1]
    assert sum(text.count(" ended: ") for text in said) == 2
    rows = read_trials(fresh)
    assert [row.params["learning_rate"] for row in rows] == [3e-3, 1e-6]
    for row in rows:
        log = lines(fresh.trial(row.number).train_log)
        assert [line["step"] for line in log] == list(range(9))
    secrets = [p for p in fresh.folder.rglob("*.json*") if address in p.read_text()]
    assert not secrets


def test_a_server_that_ends_every_connection_is_waited_for(fresh, tiny_base, monkeypatch):
    monkeypatch.setattr(study, "BEAT_S", 0.05)
    monkeypatch.setattr(runner, "RETRY_S", (0, 0.2, 0.2, 0.2))
    with postgres() as address:
        monkeypatch.setenv(SECRET, address)
        config = settings(tiny_base, sweep_storage="postgresql")
        said = []
        for line in run_trials(config, fresh):
            said.append(line)
            if len(said) == 1:
                end_every_connection(address)
    assert sum("tried again" in line for line in said) >= 1
    assert sum(" ended: " in line for line in said) == 2 and figures(fresh) == figures(
        Run("undisturbed")
    )


def end_every_connection(address):
    """As a server that is started anew does."""
    engine = create_engine(address)
    with engine.connect() as connection:
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        )
        connection.exec_driver_sql(others)
    engine.dispose()


def test_a_machine_that_has_not_the_best_model_has_done_its_share(
    fresh, workplace, tiny_base, monkeypatch
):
    with postgres() as address:
        monkeypatch.setenv(SECRET, address)
        config = settings(tiny_base, sweep_storage="postgresql")
        list(run_trials(config, fresh))
        other = workplace / "other"
        shutil.copytree(workplace / "runs/pictures", other / "runs/pictures")
        shutil.rmtree(other / "runs/pictures/sweep")
        monkeypatch.chdir(other)
        assert list(run_trials(config, Run("pictures"))) == []
        with pytest.raises(ElsewhereError, match="is the best and ran on another machine"):
            promote(Run("pictures"))


def test_a_worker_that_fell_silent_loses_its_trial_and_is_told(workplace, monkeypatch):
    monkeypatch.setattr(study, "BEAT_S", 0.05)
    with postgres() as address:
        run = Run("pictures")
        mine, other = Database(run, address), Database(run, address)
        with mine.claim(0) as claim:
            with other.claim(0) as second, other.claim(1) as another:
                assert claim and another and second is None
            with other.engine.connect() as connection:  # as idle_session_timeout does
                connection.exec_driver_sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
                )
            claim.thread.join()
            with pytest.raises(RunError, match="another worker may have this trial"):
                claim.check()
            with other.claim(0) as second:
                assert second


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("postgresql://me:hush@host/db", "holds a password"),
        ("mysql://host/db", "is not a PostgreSQL address"),
        ("nonsense", "is not a PostgreSQL address"),
        ("postgresql://me@host/db?password=hush", "holds a password"),
        ("postgresql://me:p@hush/w@host/db", "write them as %40 and %2F"),
        ("postgresql://me@/db?host=/nowhere", "database cannot be used"),
    ],
)
def test_a_storage_that_will_not_do_is_refused_without_its_password(workplace, storage, words):
    with pytest.raises(RunError, match=words) as caught:
        open_place(Run("pictures"), storage)
    assert "hush" not in str(caught.value) and "\n" not in str(caught.value)
