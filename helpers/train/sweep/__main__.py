"""Run a hyperparameter sweep from a shell: `python -m helpers.train.sweep RUN -p learning_rate 1e-5..1e-3`."""

import argparse
import sys

from helpers.config import TrainConfig, configure, from_text
from helpers.core.errors import ElsewhereError, RunError
from helpers.core.files import read_json
from helpers.core.process import run_command
from helpers.core.run import Run
from helpers.figures.trials import read_trials, table
from helpers.mirror.sync import sync


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.train.sweep", description=__doc__)
    add = parser.add_argument
    add("run")
    swept = "a setting: a range 1e-5..1e-3 or choices 4,8,16 are swept, one value is fixed"
    where = "postgresql, whose address is the secret OPTUNA_STORAGE (default: the run's folder)"
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=swept)
    add("--preset", help="start from a preset, not from the run's own settings")
    add("--trials", type=int, help="how many (default 8)")
    add("--storage", help=where)
    add("--usd-per-hour", type=float, help="the price of this machine")
    add("--plan", action="store_true", help="print the trials, hours and price, and stop")
    return parser.parse_args()


def _settings(args: argparse.Namespace, run: Run) -> TrainConfig:
    from helpers.train.sweep.search import is_dimension, read_dimension

    saved = run.sweep_config if run.sweep_config.is_file() else run.config("train")
    values = read_json(saved) if saved.is_file() and not args.preset else {}
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

    # imports diffusers, once its logging is set
    from helpers.train.sweep.runner import describe, sweep_if_asked

    if args.plan:
        print(describe(config, run))
        return
    try:
        sweep_if_asked(config, run)
    except ElsewhereError as error:  # the best trial's model is on another machine
        print(error)
    print(table(read_trials(run)).to_string())
    print(
        f"05_inference judges it, or run the sweep again with a larger --trials than {config.sweep_trials}"
    )
    print(sync(run))


if __name__ == "__main__":
    try:
        run_command(main)
    except KeyboardInterrupt:
        sys.exit("stopped: start the same command again, and it resumes from the last checkpoint")
