"""Train the model from a shell, on one GPU or several: `accelerate launch -m helpers.train RUN`.

The settings are those that 04_train left in the run, or those of a preset: `--preset t4 -p max_steps 500`.
"""

import argparse
import json
import sys
from dataclasses import asdict
from datetime import timedelta

from helpers.config import TrainConfig, configure, from_text
from helpers.core.errors import Stopped
from helpers.core.process import run_command
from helpers.core.run import Run
from helpers.mirror.sync import STOP_S, sync, sync_before_end


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m helpers.train", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--preset", help="start from a preset, not from the run's own settings")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--json", action="store_true", help="print each step as a line of JSON")
    args = parser.parse_args()
    run = Run(args.run)
    saved = {} if args.preset or not run.config("train").is_file() else run.read_config("train")
    given = {"run": args.run} | ({"preset": args.preset} if args.preset else {})
    typed = {name: from_text(TrainConfig, name, value) for name, value in args.p}
    config = configure(TrainConfig, saved | typed | given)

    import torch
    from accelerate import PartialState

    from helpers.train.finish import verify_model
    from helpers.train.trainer import train  # imports diffusers, once its logging is set

    # the others wait while the main process draws the base's samples, for which ten minutes may be too few
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    say = state.print  # in the main process only
    try:
        for step in train(config, run):
            if args.json:
                say(json.dumps(asdict(step)), flush=True)
            elif step.held_out_loss is not None:
                say(
                    f"step {step.step}/{config.max_steps}: validation loss {step.held_out_loss:.4f}"
                )
    except Stopped:
        if state.is_main_process and (message := sync_before_end(run, STOP_S)):
            print(message, file=sys.stderr)
        raise
    outcome = verify_model(run)
    if state.is_main_process:
        kept = sync(run)
        if not args.json:
            print(outcome, kept, sep="\n")


if __name__ == "__main__":
    run_command(main)
