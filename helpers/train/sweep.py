"""Several trainings, compared: `python -m helpers.train.sweep RUN -p learning_rate 1e-5..1e-3 -p rank 4,8,16`.

Each trial is the ordinary training in a folder of its own inside the run's, and goes on from its checkpoints. Start the
command again after whatever stopped it; start it on another machine with the same database, and both share the work.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

from optuna.pruners import MedianPruner
from optuna.trial import FrozenTrial

from helpers.colab import keep, restore
from helpers.config import TrainConfig, configure, from_text, read_settings
from helpers.device import pick_device
from helpers.errors import DatabaseError, ElsewhereError, RunError
from helpers.run import Run
from helpers.store import damage, folder_hash, read_json, write_json
from helpers.train.loop import train
from helpers.train.plan import plan, refuse_too_large
from helpers.train.prepare import learnt_from
from helpers.train.promote import promote
from helpers.train.search import (
    batch_of,
    is_dimension,
    measures_of,
    parse_dimension,
    plan_trials,
    read_dimension,
    trial_config,
    warnings_of,
)
from helpers.train.study import (
    SECRET,
    Journal,
    database_errors,
    open_place,
    open_study,
    unended,
)
from helpers.train.trial import Sweep, run_trial
from helpers.trials import best_of, read_trials, table

POLL_S = 2.0
PAUSES_S = (0, 1, 5, 20, 60, 60, 60, 60)  # after failures of a database, one after another


def open_sweep(config: TrainConfig, run: Run) -> Sweep:
    """Make a sweep, or take up the one that is there. Raises RunError if that is another."""
    run.require(run.split_metadata("train"), "dataset")
    planned = plan_trials(config)
    place = open_place(run, config.sweep_storage)
    measures = measures_of(config)
    pruner = MedianPruner(n_startup_trials=3, n_warmup_steps=math.ceil(measures / 3))
    learnt = learnt_from(config, processes=1) | {"max_steps": config.max_steps}
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
    if best and isinstance(sweep.place, Journal) and damage(sweep.run.trial(best.number).model):
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
    images = config.max_steps * batch_of(config)
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.train.sweep", description=__doc__.split(":")[0]
    )
    say = parser.add_argument
    say("run")
    tried = "a setting: a range 1e-5..1e-3 or choices 4,8,16 are tried, one value is kept"
    say("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=tried)
    say("--preset", help="start from a preset, not from the run's own settings")
    say("--trials", type=int, help="how many; 8 by default")
    say(
        "--storage",
        help=f"postgresql, whose address is the secret {SECRET}; the run's folder by default",
    )
    say("--usd-per-hour", type=float, help="the price of this machine")
    say("--plan", action="store_true", help="say what it would take, and stop")
    return parser.parse_args()


def _settings(args: argparse.Namespace, run: Run) -> TrainConfig:
    """The settings typed, over those of the sweep that is there, or those that 04_train left in the run."""
    kept = run.sweep_config if run.sweep_config.is_file() else run.config("train")
    values = read_json(kept) if kept.is_file() and not args.preset else {}
    swept = {n: read_dimension(n, v) for n, v in args.p if is_dimension(n, v)}
    values |= {n: from_text(TrainConfig, n, v) for n, v in args.p if n not in swept}
    given = {"sweep": swept or None, "sweep_trials": args.trials, "preset": args.preset}
    given |= {"sweep_storage": args.storage, "usd_per_hour": args.usd_per_hour, "run": run.name}
    return configure(TrainConfig, values | {k: v for k, v in given.items() if v is not None})


def main() -> None:
    args = _arguments()
    run = Run(args.run)
    config = _settings(args, run)
    if not config.sweep:
        raise RunError("nothing to sweep: give ranges, as in -p learning_rate 1e-5..1e-3")
    if args.plan:
        print(describe(config, run))
        return
    try:
        sweep_if_asked(config, run)
    except ElsewhereError as error:  # this machine has done its share
        print(error)
    print(table(read_trials(run)).to_string())
    print(
        f"05_inference judges it, or run the sweep again with a larger --trials than {config.sweep_trials}"
    )
    print(keep(run))


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: start the same command again, it goes on from the last checkpoint")
