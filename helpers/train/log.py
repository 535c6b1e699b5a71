"""What a training leaves to be watched: train_log.jsonl always, and TensorBoard or W&B by accelerate's trackers."""

import json
import logging
import math
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import append_line, on_disk, read_json, write_json, write_text
from helpers.core.records import log_lines, read_log
from helpers.core.run import Run
from helpers.figures.pictures import open_rgb

log = logging.getLogger(__name__)


class Log:
    """The rows of a training, each step once however often it was resumed; the main process writes them.

    A checkpoint holds the rows up to its step, so that the two are of one moment whatever a kill, or a
    copy made of the run folder meanwhile, left of train_log.jsonl; that is mended whenever one is saved.
    """

    def __init__(self, run: Run, step: int, accelerator: Accelerator, config: TrainConfig) -> None:
        """`step` is the one to go on from, whose checkpoint has the rows up to it."""
        self.run, self.accelerator = run, accelerator
        self.rows = kept = read_log(run.checkpoint(step) / run.train_log.name) if step else []
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(run.train_log, log_lines(kept))
        self.held_out = [(r["step"], r["held_out_loss"]) for r in kept if "held_out_loss" in r]
        self.probe = [(r["step"], r["probe_loss"]) for r in kept if "probe_loss" in r]
        self.skipped = int(max((row.get("skipped", 0) for row in kept), default=0))
        self._start_trackers(kept, config)

    def _start_trackers(self, kept: list[dict[str, Any]], config: TrainConfig) -> None:
        """Open the tracker; TensorBoard's events, of which a kill may lose the last minutes, are written anew."""
        run, accelerator = self.run, self.accelerator
        with on_disk("write", run.tensorboard):
            if config.tracker == "tensorboard":
                if accelerator.is_main_process:
                    for events in run.tensorboard.glob("events.out.tfevents.*"):
                        events.unlink()
                options = {"tensorboard": {"purge_step": 0}}
                accelerator.init_trackers(run.tensorboard.name, init_kwargs=options)
                self._replay(kept)
            elif config.tracker != "none":
                plain = {k: v for k, v in vars(config).items() if isinstance(v, int | float | str)}
                again = {"id": self._id(bool(kept)), "name": run.name, "resume": "allow"}
                options = {"wandb": again | {"dir": run.folder}}
                accelerator.init_trackers("annalaura-diffusion", plain, options)

    def _replay(self, kept: list[dict[str, Any]]) -> None:
        steps = {row["step"] for row in kept}
        for tracker in self.accelerator.trackers:
            for row in kept:
                _track(tracker, row)
        for path in self.run.preview_files():
            if int(path.stem.removeprefix("step-")) in steps:
                try:
                    self.show(path)
                except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of no picture
                    log.warning("%s cannot be read, and is not shown (%s)", path, error)

    def _id(self, goes_on: bool) -> str:
        """What names this training to W&B, however often it is resumed, on whatever machine."""
        path = self.run.tracker
        if self.accelerator.is_main_process and not (goes_on and _kept_id(path)):
            write_json(path, {"id": uuid.uuid4().hex})
        self.accelerator.wait_for_everyone()
        return _kept_id(path)

    def show(self, path: Path) -> None:
        """Give the preview of a step to trackers that take pictures."""
        step = int(path.stem.removeprefix("step-"))
        pixels = np.asarray(open_rgb(path))[None]
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"previews": pixels}, step=step, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({"previews": pixels}, step=step)

    def add(self, row: dict[str, Any]) -> None:
        """Add a step; values that are None or no number stay out. Raises RunError if a disk refuses it."""
        row = {k: v for k, v in row.items() if v is not None and not math.isnan(v)}
        self.rows.append(row)
        if "held_out_loss" in row:
            self.held_out.append((row["step"], row["held_out_loss"]))
        if "probe_loss" in row:
            self.probe.append((row["step"], row["probe_loss"]))
        if self.accelerator.is_main_process:
            # checkpoints hold it, synced
            append_line(self.run.train_log, json.dumps(row), sync=False)
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                _track(tracker, row)

    def mend(self) -> None:
        """Have train_log.jsonl hold what it should, whatever became of it meanwhile."""
        path, whole = self.run.train_log, log_lines(self.rows)
        if not path.is_file() or path.read_bytes() != whole.encode():
            write_text(path, whole)

    def close(self) -> None:
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers = []


def _kept_id(path: Path) -> str:
    with suppress(OSError, ValueError, TypeError, LookupError):
        return str(read_json(path)["id"])
    return ""


def _track(tracker: GeneralTracker, row: dict[str, Any]) -> None:
    tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def tracker_of(config: TrainConfig) -> str | None:
    """The tracker as accelerate names it. Raises RunError if it is not installed."""
    if config.tracker == "none":
        return None
    if config.tracker not in [tracker.value for tracker in get_available_trackers()]:
        raise RunError(
            f"tracker is {config.tracker!r}, which is not installed: set tracker to 'tensorboard'"
        )
    return config.tracker
