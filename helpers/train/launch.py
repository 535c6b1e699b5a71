"""Train on all GPUs of this machine: accelerate starts a process for each, and the notebook watches their steps."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import NoReturn

import torch

from helpers.config import TrainConfig
from helpers.core.errors import RunError, Stopped
from helpers.core.run import Run
from helpers.mirror.sync import delete_remote, sync_soon, written_elsewhere
from helpers.train import trainer
from helpers.train.finish import is_finished
from helpers.train.gpus import count_gpus, launch_command, share
from helpers.train.interrupt import Interrupts
from helpers.train.limits import memory_advice
from helpers.train.trainer import Step, Steps

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
    return Steps(partial(_watch, config, shared, processes, run))


def _watch(config: TrainConfig, shared: TrainConfig, processes: int, run: Run) -> Generator[Step]:
    """Start the processes, print their command and what they say, and yield the steps that they tell."""
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    command, is_under_way = launch_command(shared, processes), False
    print(f"{processes} processes: {shlex.join(command)}")
    torch.cuda.empty_cache()
    launched = _Launched(command)
    try:
        with Interrupts(launched.stop) as interrupts:
            for line in iter(launched.lines.get, None):
                if line.startswith("{"):
                    interrupts.set_handlers()
                    if not is_under_way:
                        _take_up(config, run)
                        is_under_way = True
                    yield Step(**json.loads(line))
                elif not NOISE.search(line) and not launched.last_words():
                    print(line, end="")
    except Stopped:
        raise
    except KeyboardInterrupt:  # by a cell's own handler, which came after ours
        launched.stop(signal.SIGINT)
    finally:
        launched.end()
        written_elsewhere(run)
    if launched.is_stopped:  # between two steps, and now iterated again
        yield from _watch(config, shared, processes, run)
    elif launched.process.returncode:
        words = launched.last_words() or launched.said[-1:] or ["no reason given"]
        reason = words[0].removeprefix("error: ")
        raise RunError(reason.replace(memory_advice(shared), memory_advice(config)))


def _take_up(config: TrainConfig, run: Run) -> None:
    run.write_config("train", config)  # the processes left those of one of them
    if config.begin_again:  # and they have no mirror
        delete_remote(run)


class _Launched:
    """The processes that a command started; a thread reads what they say, so that they never wait to say it."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            [*ACCELERATE, *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"OMP_NUM_THREADS": "1"} | os.environ,
            start_new_session=True,  # a notebook's stop button reaches this process, which stops those
        )
        self.lines: SimpleQueue[str | None] = SimpleQueue()
        self.said: list[str] = []
        self.is_stopped = False
        self.reader = Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if not line.startswith("{"):
                self.said.append(line.strip())
            self.lines.put(line)
        self.lines.put(None)

    def last_words(self) -> list[str]:
        """Return the lines, of each process, that end a training which failed or was stopped."""
        return [line for line in self.said if line.startswith(("error: ", "stopped "))]

    def stop(self, number: int) -> NoReturn:
        """Stop the processes after their step, and raise Stopped with what they said."""
        self.is_stopped = True
        self.end()
        words = self.last_words() or ["stopped: run 04_train again to go on"]
        raise Stopped(words[0], number)

    def end(self) -> None:
        """Ask the processes to save and to end, if they have not, and wait for it."""
        if self.process.poll() is None:
            self.process.terminate()
        self.reader.join()
        self.process.wait()
