"""What a training leaves to be watched: train_log.jsonl always, and TensorBoard or W&B by accelerate's trackers."""

import importlib.util
import json
import math
from typing import Any

from accelerate import Accelerator

from helpers.config import TrainConfig
from helpers.errors import RunError
from helpers.records import read_log
from helpers.run import Run
from helpers.store import append_line, write_text


class Log:
    """The rows of a training, each step once however often it was resumed; the main process writes them."""

    def __init__(self, run: Run, step: int, accelerator: Accelerator) -> None:
        """`step` is the one to go on from; rows after it are taken out."""
        self.run, self.accelerator = run, accelerator
        kept = [row for row in read_log(run.train_log) if row["step"] <= step] if step else []
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and run.train_log.is_file():
            write_text(run.train_log, "".join(json.dumps(row) + "\n" for row in kept))
        self.held_out = [(r["step"], r["held_out_loss"]) for r in kept if "held_out_loss" in r]
        self.skipped = int(max((row.get("skipped", 0) for row in kept), default=0))
        names = {"tensorboard": run.tensorboard.name, "wandb": "annalaura-diffusion"}
        for name in accelerator.log_with:
            again = {"id": run.name, "name": run.name, "resume": "allow"}
            options = {"tensorboard": {"purge_step": step + 1}, "wandb": again}
            accelerator.init_trackers(names[str(name.value)], init_kwargs=options)

    def add(self, row: dict[str, Any]) -> None:
        """Add a step; values that are None or no number stay out."""
        row = {k: v for k, v in row.items() if v is not None and not math.isnan(v)}
        if self.accelerator.is_main_process:
            append_line(self.run.train_log, json.dumps(row))
        if "held_out_loss" in row:
            self.held_out.append((row["step"], row["held_out_loss"]))
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()


def tracker_of(config: TrainConfig) -> str | None:
    """The tracker as accelerate names it. Raises RunError if it is not installed."""
    if config.tracker == "wandb" and importlib.util.find_spec("wandb") is None:
        raise RunError("tracker is 'wandb', which is not installed: set tracker to 'tensorboard'")
    return None if config.tracker == "none" else config.tracker
