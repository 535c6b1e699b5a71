"""Several trainings, compared: `python -m helpers.train.sweep RUN -p learning_rate 1e-5..1e-3 -p rank 4,8,16`.

Each trial is the ordinary training in a folder of its own inside the run's, and goes on from its checkpoints. Start the
command again after whatever stopped it; start it on another machine with the same database, and both share the work.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial

from helpers.config import TrainConfig, read_settings
from helpers.core.errors import DatabaseError
from helpers.core.files import find_corruption, folder_hash, write_json
from helpers.core.run import Run
from helpers.figures.trials import best_of, read_trials
from helpers.host.device import pick_device
from helpers.mirror.sync import restore
from helpers.train.plan import plan, refuse_too_large
from helpers.train.prepare import training_signature
from helpers.train.sweep.promote import promote
from helpers.train.sweep.search import (
    measures_of,
    parse_dimension,
    plan_trials,
    trial_config,
    warnings_of,
)
from helpers.train.sweep.study import (
    Journal,
    database_errors,
    open_place,
    open_study,
    unended,
)
from helpers.train.sweep.trial import Sweep, run_trial
from helpers.train.trainer import train

POLL_S = 2.0
PAUSES_S = (0, 1, 5, 20, 60, 60, 60, 60)  # after failures of a database, one after another


def open_sweep(config: TrainConfig, run: Run) -> Sweep:
    """Make a sweep, or take up the one that is there. Raises RunError if that is another."""
    run.require(run.split_metadata("train"), "dataset")
    planned = plan_trials(config)
    place = open_place(run, config.sweep_storage)
    measures = measures_of(config)
    pruner = MedianPruner(n_startup_trials=3, n_warmup_steps=math.ceil(measures / 3))
    learnt = training_signature(config, processes=1) | {"max_steps": config.max_steps}
    belongs = learnt | {"sweep": config.sweep, "dataset": folder_hash(run.dataset)}
    dimensions = {name: parse_dimension(name, asked) for name, asked in config.sweep.items()}
    with database_errors():
        study = open_study(place, run, planned, dimensions, belongs, pruner)
    write_json(run.sweep_config, asdict(config))
    return Sweep(config, run, place, study)


def run_trials(config: TrainConfig, run: Run) -> Iterator[str]:
    """Run what is left of a sweep, yielding a line of news at a time, until every trial has ended, here or elsewhere.

    A database that falls silent is waited for. Raises RunError where training would, but for a trial whose loss is
    no number or that needs more memory than there is: that one is pruned.
    """
    sweep, failures = open_sweep(config, run), 0
    for trial in sweep.study.get_trials(deepcopy=False):
        restore(run.trial(trial.number), follow=False)
    while True:
        try:
            with database_errors():
                for line in chain(_run_left(sweep), _mend_best(sweep)):
                    failures = 0
                    yield line
            return
        except DatabaseError as error:
            failures += 1
            if failures == len(PAUSES_S):
                raise
            yield f"{error}; tried again in {PAUSES_S[failures]:g} s"
            time.sleep(PAUSES_S[failures])


def _run_left(sweep: Sweep) -> Iterator[str]:
    """Run the trials that nobody has ended or runs, one after another."""
    waiting = False
    sweep.write_table()
    while left := unended(sweep.study):
        ran = False
        for trial in left:
            with sweep.place.claim(trial.number) as claim:
                trial = sweep.study.get_trials(deepcopy=False)[trial.number]
                if claim and not trial.state.is_finished():
                    yield from run_trial(sweep, trial, claim)
                    ran, waiting = True, False
                    break
        if not ran:
            if not waiting:
                yield f"waiting for {_numbers(left)}, which other workers have"
            waiting = True
            time.sleep(POLL_S)
    if waiting:
        sweep.write_table()


def _mend_best(sweep: Sweep) -> Iterator[str]:
    """Train the best trial again where its model was lost, which gives the same; with a database it is elsewhere."""
    best = best_of(read_trials(sweep.run))
    if (
        best
        and isinstance(sweep.place, Journal)
        and find_corruption(sweep.run.trial(best.number).model)
    ):
        yield f"{best.name}: its model is not here any more, so it is trained again"
        for _ in train(trial_config(sweep.config, best.params), sweep.run.trial(best.number)):
            pass


def _numbers(trials: list[FrozenTrial]) -> str:
    return "trial " + ", ".join(str(trial.number) for trial in trials)


def describe(config: TrainConfig, run: Run) -> str:
    """What a sweep will try and take: its trials, and hours by a few steps on random weights of the same shapes."""
    planned = plan_trials(config)
    device = pick_device(config.mixed_precision, config.attention, config.capture)
    for params in planned:
        refuse_too_large(trial_config(config, params), run, device)
    hours = len(planned) * (plan(config, run, device).hours or 0.0)
    images = config.max_steps * config.effective_batch_size
    price = f", {hours * config.usd_per_hour:.2f} USD" if config.usd_per_hour else ""
    lines = [f"{number:5}  {params}" for number, params in enumerate(planned)]
    head = f"{len(planned)} trials of {images} images, {hours:.1f} hours at most{price}; hopeless ones end sooner:"
    return "\n".join([head, *lines, *warnings_of(config)])


def sweep_if_asked(config: TrainConfig, run: Run) -> TrainConfig:
    """Run the sweep that the settings ask for, saying how it goes, and promote its best.

    Returns the settings of what is to be trained now: the best trial's, or those given where there is no sweep.
    Raises RunError where training would, or no trial came to its end, and ElsewhereError where the best one's
    model is on another machine.
    """
    if not config.sweep:
        return config
    print(describe(config, run))
    for line in run_trials(config, run):
        print(line, flush=True)
    print(promote(run))
    return read_settings(TrainConfig, run.read_config("train"))
