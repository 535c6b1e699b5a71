"""Run a hyperparameter sweep: `python -m helpers.train.sweep RUN -p learning_rate 1e-5..1e-3 -p rank 4,8,16`.

Each trial is the ordinary training in a folder of its own inside the run's, and resumes from its checkpoints. Start the
command again after whatever stopped it; start it on another machine with the same database, and both share the work.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain

from helpers.config import TrainConfig, read_settings
from helpers.core.errors import DatabaseError
from helpers.core.files import find_corruption, write_json
from helpers.core.run import Run
from helpers.figures.trials import best_trial, read_trials
from helpers.host.device import pick_device
from helpers.mirror.sync import restore
from helpers.train.resources import estimate_resources, format_hours, refuse_too_large
from helpers.train.sweep.promote import promote
from helpers.train.sweep.search import plan_trials, trial_config, unused_settings
from helpers.train.sweep.study import Journal, database_errors, open_place, open_study
from helpers.train.sweep.trial import Sweep, run_trial
from helpers.train.trainer import train

POLL_S = 2.0
RETRY_S = (0, 1, 5, 20, 60, 60, 60, 60)  # before each retry after a database failure


def open_sweep(config: TrainConfig, run: Run) -> Sweep:
    """Create a run's sweep, or resume the existing sweep. Raises RunError if its settings or data have changed."""
    run.require(run.split_metadata("train"), "dataset")
    planned = plan_trials(config)
    place = open_place(run, config.sweep_storage)
    with database_errors():
        study = open_study(place, run, config, planned)
    write_json(run.sweep_config, asdict(config))
    return Sweep(config, run, place, study)


def run_trials(config: TrainConfig, run: Run) -> Iterator[str]:
    """Run a sweep's remaining trials until all have ended, here or on other machines; yield lines of progress.

    A lost database connection is retried. A trial is pruned if its loss is NaN or it runs out of memory (OOM). Raises
    RunError for other errors of training.
    """
    sweep, failures = open_sweep(config, run), 0
    for trial in sweep.study.get_trials(deepcopy=False):
        restore(run.trial(trial.number), follow=False)
    while True:
        try:
            with database_errors():
                for line in chain(_run_remaining(sweep), _retrain_lost_best(sweep)):
                    failures = 0
                    yield line
            return
        except DatabaseError as error:
            failures += 1
            if failures == len(RETRY_S):
                raise
            yield f"{error}; tried again in {RETRY_S[failures]:g} s"
            time.sleep(RETRY_S[failures])


def _run_remaining(sweep: Sweep) -> Iterator[str]:
    waiting = False
    sweep.write_table()
    trials = partial(sweep.study.get_trials, deepcopy=False)
    while left := [trial for trial in trials() if not trial.state.is_finished()]:
        for trial in left:
            with sweep.place.claim(trial.number) as claim:
                trial = trials()[trial.number]
                if claim and not trial.state.is_finished():
                    yield from run_trial(sweep, trial, claim)
                    waiting = False
                    break
        else:
            if not waiting:
                numbers = ", ".join(str(trial.number) for trial in left)
                yield f"waiting for trial {numbers}, which other workers run"
            waiting = True
            time.sleep(POLL_S)
    if waiting:
        sweep.write_table()


def _retrain_lost_best(sweep: Sweep) -> Iterator[str]:
    best = best_trial(read_trials(sweep.run))
    if best is None or not isinstance(sweep.place, Journal):
        return  # with a database, another machine may have the model
    trial = sweep.run.trial(best.number)
    if find_corruption(trial.model):
        yield f"{best.name}: its model is missing or damaged, so it is trained again"
        for _ in train(trial_config(sweep.config, best.params), trial):
            pass


def describe(config: TrainConfig, run: Run) -> str:
    """Return a sweep's trials, estimated hours and price as text. Raises RunError if a trial will not fit."""
    planned = plan_trials(config)
    device = pick_device(config.mixed_precision, config.attention, config.capture)
    for params in planned:
        refuse_too_large(trial_config(config, params), run, device)
    hours = len(planned) * (estimate_resources(config, run, device).hours or 0.0)
    images = config.max_steps * config.effective_batch_size
    price = f", {hours * config.usd_per_hour:.2f} USD" if config.usd_per_hour else ""
    lines = [f"{number:5}  {params}" for number, params in enumerate(planned)]
    takes = format_hours(hours)
    head = f"{len(planned)} trials of {images} images, {takes} at most{price}; hopeless trials are pruned:"
    return "\n".join([head, *lines, *unused_settings(config)])


def sweep_if_asked(config: TrainConfig, run: Run) -> TrainConfig:
    """Run the sweep that the settings ask for, print its progress, and promote its best trial.

    Returns the best trial's settings, or the given ones if they ask for no sweep. Raises RunError if training does or
    no trial is complete, and ElsewhereError if the best one's model is on another machine.
    """
    if not config.sweep:
        return config
    print(describe(config, run))
    for line in run_trials(config, run):
        print(line, flush=True)
    print(promote(run))
    return read_settings(TrainConfig, run.read_config("train"))
