"""Log training steps to train_log.jsonl, and to TensorBoard, W&B or another of accelerate's trackers."""

import json
import logging
import math
import time
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


class TrainLog:
    """The training log: one row per optimizer step, however often training was resumed.

    The main process writes it. A checkpoint holds the rows up to its step, so that the log agrees with it whatever a
    kill, or a copy of the run folder, left of train_log.jsonl. The file is repaired whenever a checkpoint is saved.
    """

    def __init__(
        self, run: Run, step: int, accelerator: Accelerator, config: TrainConfig, began: float
    ) -> None:
        """Start the log with the rows of the checkpoint at `step`; `began` is time.perf_counter() at the start."""
        self.run, self.accelerator, self.counted_until = run, accelerator, began
        self.rows = logged = read_log(run.checkpoint(step) / run.train_log.name) if step else []
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(run.train_log, log_lines(logged))
        self.val_curve = [(r["step"], r["held_out_loss"]) for r in logged if "held_out_loss" in r]
        self.train_eval_curve = [(r["step"], r["probe_loss"]) for r in logged if "probe_loss" in r]
        self.skipped = int(max((row.get("skipped", 0) for row in logged), default=0))
        self._start_trackers(config)

    def _start_trackers(self, config: TrainConfig) -> None:
        """Start the configured tracker. TensorBoard's events are written anew: a kill may have lost the last ones."""
        run, accelerator = self.run, self.accelerator
        with on_disk("write", run.tensorboard):
            if config.tracker == "tensorboard":
                if accelerator.is_main_process:
                    for events in run.tensorboard.glob("events.out.tfevents.*"):
                        events.unlink()
                options = {"tensorboard": {"purge_step": 0}}
                accelerator.init_trackers(run.tensorboard.name, init_kwargs=options)
                self._replay()
            elif config.tracker != "none":
                settings = vars(config).items()
                settings = {k: v for k, v in settings if isinstance(v, int | float | str)}
                wandb = {"id": self._wandb_id(), "name": run.name, "resume": "allow"}
                options = {"wandb": wandb | {"dir": run.folder}}
                accelerator.init_trackers("annalaura-diffusion", settings, options)

    def _replay(self) -> None:
        """Send the rows and previews of earlier steps to the trackers again."""
        steps = {row["step"] for row in self.rows}
        for tracker in self.accelerator.trackers:
            for row in self.rows:
                _track(tracker, row)
        for path in self.run.preview_files():
            if int(path.stem.removeprefix("step-")) in steps:
                try:
                    self.show(path)
                except (OSError, SyntaxError, ValueError) as error:  # Pillow's, if it is no image
                    log.warning("%s cannot be read, and is not shown (%s)", path, error)

    def _wandb_id(self) -> str:
        """Return this training's W&B id, the same on every machine and after every resume."""
        known = ""
        if self.rows:
            with suppress(OSError, ValueError, TypeError, LookupError):
                known = str(read_json(self.run.tracker)["id"])
        if not known and self.accelerator.is_main_process:  # W&B logs in this process alone
            known = uuid.uuid4().hex
            write_json(self.run.tracker, {"id": known})
        return known

    def show(self, path: Path) -> None:
        """Send a preview image to TensorBoard or W&B."""
        step = int(path.stem.removeprefix("step-"))
        pixels = {"previews": np.asarray(open_rgb(path))[None]}
        options = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}}
        for tracker in self.accelerator.trackers:
            if tracker.name in options:
                tracker.log_images(pixels, step=step, **options[tracker.name])

    def add(self, row: dict[str, Any]) -> None:
        """Log a step's row, leaving out values that are None or NaN. Raises RunError if the disk refuses the row."""
        row = {k: v for k, v in row.items() if v is not None and not math.isnan(v)}
        self.rows.append(row)
        if "held_out_loss" in row:
            self.val_curve.append((row["step"], row["held_out_loss"]))
        if "probe_loss" in row:
            self.train_eval_curve.append((row["step"], row["probe_loss"]))
        if self.accelerator.is_main_process:
            # not synced: checkpoints hold a synced copy
            append_line(self.run.train_log, json.dumps(row), sync=False)
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                _track(tracker, row)

    def repair(self) -> None:
        """Rewrite train_log.jsonl if the file differs from the rows that this training logged."""
        path, expected = self.run.train_log, log_lines(self.rows)
        if not path.is_file() or path.read_bytes() != expected.encode():
            write_text(path, expected)

    def count_seconds(self) -> None:
        """Add the training time since the last call to the run's seconds.json."""
        now = time.perf_counter()
        self.run.add_seconds("train", now - self.counted_until)
        self.counted_until = now

    def close(self) -> None:
        with on_disk("write", self.run.tensorboard):
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.accelerator.trackers = []


def _track(tracker: GeneralTracker, row: dict[str, Any]) -> None:
    tracker.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])


def tracker_of(config: TrainConfig) -> str | None:
    """Return the configured tracker's name, or None for "none". Raises RunError if the tracker is not installed."""
    if config.tracker == "none":
        return None
    if config.tracker not in [tracker.value for tracker in get_available_trackers()]:
        raise RunError(
            f"tracker is {config.tracker!r}, which is not installed: set tracker to 'tensorboard'"
        )
    return config.tracker
