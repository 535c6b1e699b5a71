"""Train on all GPUs of this machine: accelerate starts a process for each, and the notebook watches their steps."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator
from functools import partial
from typing import NoReturn

import torch

from helpers.config import TrainConfig
from helpers.core.errors import RunError, Stopped
from helpers.core.run import Run
from helpers.mirror.sync import sync_soon, written_elsewhere
from helpers.train import trainer
from helpers.train.finish import is_finished
from helpers.train.gpus import count_gpus, launch_command, share
from helpers.train.interrupt import Interrupts
from helpers.train.trainer import Step, Steps

OURS = ("error: ", "stopped ")  # begin the lines that are raised here
NOISE = re.compile(
    r"^\[|%\||^\s|Traceback|torch.distributed|^[WE]\d{4} "
)  # of libraries, and progress bars
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]


def train(config: TrainConfig, run: Run, processes: int | None = None) -> Steps:
    """Fine-tune as trainer.train does, in as many processes as there are GPUs, on the same batches.

    In one, in this process, where the batch cannot be shared. Raises what trainer.train raises, as RunError.
    """
    processes = processes or count_gpus()
    shared = share(config, processes)
    if processes == 1 or shared is None:
        return trainer.train(config, run, sync_soon)
    return Steps(partial(_watch, config, run, launch_command(shared, processes)))


def _watch(config: TrainConfig, run: Run, command: list[str]) -> Generator[Step]:
    """Start the command, print it and what it says, and yield the steps that it tells."""
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    print(f"{command[command.index('--num_processes') + 1]} processes: {shlex.join(command)}")
    torch.cuda.empty_cache()
    started = subprocess.Popen(
        [*ACCELERATE, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
        start_new_session=True,  # a notebook's stop button reaches this process alone, which stops those
    )
    said: list[str] = []
    try:
        with Interrupts(partial(_stop, started)) as interrupts:
            for line in started.stdout:
                if not line.startswith("{"):
                    said.append(line.strip())
                    if not NOISE.search(line) and not any(s.startswith(OURS) for s in said):
                        print(line, end="")
                    continue
                interrupts.set_handlers()
                yield Step(**json.loads(line))
    except KeyboardInterrupt as stopped:  # by the handler of a cell, which came after ours
        if isinstance(stopped, Stopped):
            raise
        _stop(started, 2)
    finally:
        if started.poll() is None:
            started.terminate()
        started.wait()
        written_elsewhere(run)
    if started.returncode:
        raise RunError(_reason(said))


def _stop(started: subprocess.Popen, number: int) -> NoReturn:
    """Stop the processes after their step, and raise Stopped with what they said."""
    started.terminate()
    said = [line.strip() for line in started.stdout]
    started.wait()
    words = [line for line in said if line.startswith("stopped ")]
    raise Stopped(words[-1] if words else "stopped: run 04_train again to go on", number)


def _reason(said: list[str]) -> str:
    """Return the error in a failed command's output: the project's own line, or else the last line."""
    own = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (own or [line for line in said if line] or ["no reason given"])[-1 if not own else 0]
