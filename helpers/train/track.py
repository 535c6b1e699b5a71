"""What a training leaves to be watched: train_log.jsonl always, and TensorBoard or W&B by accelerate's trackers."""

import importlib.util
import json
import math
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from helpers.config import TrainConfig
from helpers.errors import RunError
from helpers.records import read_log
from helpers.run import Run
from helpers.store import append_line, on_disk, write_text


class Log:
    """The rows of a training, each step once however often it was resumed; the main process writes them.

    A checkpoint holds the log up to its step, so that the two are of one moment whatever a kill, or a
    copy made of the run folder meanwhile, left of train_log.jsonl.
    """

    def __init__(self, run: Run, step: int, accelerator: Accelerator) -> None:
        """`step` is the one to go on from, whose checkpoint has the rows up to it."""
        self.run, self.accelerator = run, accelerator
        kept = read_log(run.checkpoint(step) / run.train_log.name) if step else []
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(run.train_log, "".join(json.dumps(row) + "\n" for row in kept))
        self.held_out = [(r["step"], r["held_out_loss"]) for r in kept if "held_out_loss" in r]
        self.probe = [(r["step"], r["probe_loss"]) for r in kept if "probe_loss" in r]
        self.skipped = int(max((row.get("skipped", 0) for row in kept), default=0))
        self._start_trackers(kept)

    def _start_trackers(self, kept: list[dict[str, Any]]) -> None:
        """Open the trackers; TensorBoard's events, of which a kill may lose the last minutes, are written anew."""
        run, accelerator = self.run, self.accelerator
        names = {"tensorboard": run.tensorboard.name, "wandb": "annalaura-diffusion"}
        again = {"id": run.name.replace("/", "-"), "name": run.name, "resume": "allow"}
        options = {"tensorboard": {"purge_step": 0}, "wandb": again}
        with on_disk("write", run.tensorboard):
            if accelerator.is_main_process:
                for events in run.tensorboard.glob("events.out.tfevents.*"):
                    events.unlink()
            for name in accelerator.log_with:
                accelerator.init_trackers(names[str(name.value)], init_kwargs=options)
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":
                    for row in kept:
                        _track(tracker, row)

    def add(self, row: dict[str, Any]) -> None:
        """Add a step; values that are None or no number stay out. Raises RunError if a disk refuses it."""
        row = {k: v for k, v in row.items() if v is not None and not math.isnan(v)}
        if "held_out_loss" in row:
            self.held_out.append((row["step"], row["held_out_loss"]))
        if "probe_loss" in row:
            self.probe.append((row["step"], row["probe_loss"]))
        if self.accelerator.is_main_process:
            append_line(self.run.train_log, json.dumps(row))
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                _track(tracker, row)

    def close(self) -> None:
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers = []


def _track(tracker: GeneralTracker, row: dict[str, Any]) -> None:
    tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def tracker_of(config: TrainConfig) -> str | None:
    """The tracker as accelerate names it. Raises RunError if it is not installed."""
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise RunError("tracker is 'wandb', which is not installed: set tracker to 'tensorboard'")
    return None if config.tracker == "none" else config.tracker
