"""A sweep from a shell: `python -m helpers.train.sweep RUN -p learning_rate 1e-5..1e-3 -p rank 4,8,16`."""

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
    from helpers.train.sweep.study import SECRET

    parser = argparse.ArgumentParser(prog="python -m helpers.train.sweep", description=__doc__)
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
    from helpers.train.sweep.search import is_dimension, read_dimension

    kept = run.sweep_config if run.sweep_config.is_file() else run.config("train")
    values = read_json(kept) if kept.is_file() and not args.preset else {}
    swept = {n: read_dimension(n, v) for n, v in args.p if is_dimension(n, v)}
    values |= {n: from_text(TrainConfig, n, v) for n, v in args.p if n not in swept}
    given = {"sweep": swept or None, "sweep_trials": args.trials, "preset": args.preset}
    given |= {"sweep_storage": args.storage, "usd_per_hour": args.usd_per_hour, "run": run.name}
    return configure(TrainConfig, values | {k: v for k, v in given.items() if v is not None})


def main() -> None:
    from helpers.train.sweep.runner import describe, sweep_if_asked  # diffusers, once it is quiet

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
    print(sync(run))


if __name__ == "__main__":
    try:
        run_command(main)
    except KeyboardInterrupt:
        sys.exit("stopped: start the same command again, it goes on from the last checkpoint")
