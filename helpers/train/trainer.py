"""The training loop. `train` is a generator: it computes and keeps, and whoever reads it watches.

prepare.py makes what it works with; finish.py leaves the model and the verdict.
"""

import math
import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from helpers.config import TrainConfig
from helpers.core.errors import DivergedError, RunError, Stopped
from helpers.core.files import MANIFEST, find_corruption, folder_hash, locked_by_process
from helpers.core.records import read_log
from helpers.core.run import Run
from helpers.host.device import Device, memory_gb, pick_device
from helpers.mirror.sync import sync_soon
from helpers.train import checkpoint
from helpers.train.finish import finish, is_finished
from helpers.train.interrupt import Interrupts
from helpers.train.limits import machine_errors, refuse_slow
from helpers.train.optim import step_if_finite
from helpers.train.plan import refuse_too_large
from helpers.train.prepare import Training
from helpers.train.preview import write_preview
from helpers.train.verdict import best_of

MOST_BAD_STEPS = 5
Batch = list[tuple[Tensor, ...]]  # the micro-batches of a step


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. Losses at fixed noise are there on the steps that measured them."""

    step: int
    loss: float
    learning_rate: float
    images_per_s: float
    skipped: int = 0  # steps so far whose loss or gradient was no number
    held_out_loss: float | None = None
    probe_loss: float | None = None  # the same measure on training images

    @property
    def progress(self) -> str:
        """What stands beside a progress bar."""
        return (
            f"loss {self.loss:.4f}, rate {self.learning_rate:.2g}, {self.images_per_s:.1f} images/s, "
            f"{memory_gb():.1f} GB"
        )


class Steps(Iterator[Step]):
    """The steps of a training: iterated again after a stop or an error, as by a cell that is run again, it goes on."""

    def __init__(self, config: TrainConfig, run: Run) -> None:
        self._begin = partial(_train, config, run)
        self._steps = self._begin()

    def __iter__(self) -> "Steps":
        if self._steps.gi_frame is None:  # it has ended, for whatever reason
            self._steps = self._begin()
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        """End it as it is; what was saved is kept."""
        self._steps.close()


def train(config: TrainConfig, run: Run) -> Steps:
    """Fine-tune, yielding each optimizer step; a rerun goes on from the newest checkpoint, or does nothing.

    Step 0 is the base model, measured. At the end model/ holds a pipeline and verdict.json the outcome.
    Raises RunError where the dataset or the base model is missing or damaged, a checkpoint belongs to another
    training, another process trains this run, it will not fit, a full-size model would train without a GPU, a disk
    refuses what is to be kept, or the loss stops being a number; Stopped after SIGINT or SIGTERM, with the last
    step kept.
    """
    return Steps(config, run)


def _train(config: TrainConfig, run: Run) -> Generator[Step]:
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    with machine_errors(config), Interrupts(_stop_before) as interrupts, _alone(run):
        device = _check(config, run)
        training = Training(config, run, device)
        interrupts.stop = partial(_stop, training)
        interrupts.is_one_of_many = training.accelerator.num_processes > 1
        with closing(training.log):
            yield from _steps(training, interrupts)
            finish(training)


@contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Train a run in one process, or one group of them, at a time. Raises RunError where another one does."""
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started
    lock = locked_by_process(run.train_lock) if is_first else nullcontext(True)
    with lock as is_mine:
        if not is_mine:
            raise RunError(f"{run.folder} is trained by another process: wait for it, or stop it")
        yield


def _check(config: TrainConfig, run: Run) -> Device:
    """Refuse what cannot be trained here before anything is loaded; the device to train on."""
    if what := find_corruption(run.dataset):
        raise RunError(f"{what}: run 03_dataset again")
    device = pick_device(config.mixed_precision, config.attention, config.capture)
    refuse_slow(config, device)
    refuse_too_large(config, run, device)
    return device


def _steps(training: Training, interrupts: Interrupts) -> Iterator[Step]:
    """Step 0, measured, and then every optimizer step: logged, and kept where it is time to, before it is yielded."""
    training.unet.train()
    if training.step == 0:
        with interrupts.busy():
            measured = _look(training, Step(0, math.nan, 0.0, 0.0))
        _stop_if_asked(training, interrupts)
        yield measured
    batch = training.batches.of_step(training.step)
    while training.step < training.config.max_steps and not training.stopped_early:
        with interrupts.busy():
            step, batch = _take_step(training, batch)
            if _is_time_to_save(training):
                _save(training)
        _stop_if_asked(training, interrupts)
        yield step


def _take_step(training: Training, batch: Batch) -> tuple[Step, Batch]:
    """One optimizer step, measured and logged, and the batch of the next one.

    Raises DivergedError if the loss was no number for several steps in a row.
    """
    began = time.perf_counter()
    losses, gradient_norm = _optimise_once(training, batch)
    batch = training.batches.of_step(training.step)  # made while the GPU works
    loss, norm = torch.stack([losses.mean(), gradient_norm]).tolist()  # waits for it
    rate = training.batches.images_per_step / (time.perf_counter() - began)
    was_skipped = _was_skipped(training, loss, norm)
    training.bad_steps = [*training.bad_steps, _bad_images(training, losses)] if was_skipped else []
    if len(training.bad_steps) == MOST_BAD_STEPS:
        raise DivergedError(_no_number(training))
    learning_rate = training.schedule.get_last_lr()[0]
    step = Step(training.step, loss, learning_rate, rate, training.log.skipped)
    return _look(training, step), batch


def _optimise_once(training: Training, batch: Batch) -> tuple[Tensor, Tensor]:
    """One optimizer step over the effective batch.

    Returns the unweighted loss of each image (micro-batch, image), over all processes, and the
    gradient's norm; reading either waits for the device.
    """
    accelerator, max_grad_norm, losses = training.accelerator, training.config.max_grad_norm, []
    for micro_batch in batch:
        with accelerator.accumulate(training.unet):
            losses.append(training.forward_backward(*micro_batch))
            if accelerator.sync_gradients:
                weights = training.weights.values()
                norm = step_if_finite(accelerator, training.optimizer, weights, max_grad_norm)
            training.optimizer.zero_grad(set_to_none=not training.device.captures)
    training.schedule.step()
    training.step += 1
    if training.average:
        training.average.update(training.step)
    return accelerator.gather(torch.stack(losses, dim=1)).T, norm


def _was_skipped(training: Training, loss: float, gradient_norm: float) -> bool:
    """Count a step that was passed over. A gradient too large for fp16 alone is no fault: its scale is found so."""
    training.log.skipped += not (math.isfinite(loss) and math.isfinite(gradient_norm))
    return not math.isfinite(loss if training.accelerator.scaler else loss + gradient_norm)


def _bad_images(training: Training, losses: Tensor) -> set[str]:
    """The images of the last step whose loss is no number; none where the gradient alone is none."""
    bad = (~losses.isfinite()).cpu()
    named = zip(training.batches.names(training.step - 1), bad.tolist(), strict=True)
    return {n for names, flags in named for n, is_bad in zip(names, flags, strict=True) if is_bad}


def _no_number(training: Training) -> str:
    """The message of a training whose loss stays no number."""
    names = sorted(set().union(*training.bad_steps))
    which = f" (with {', '.join(names[:8])})" if names else ""
    return (
        f"the loss was no number {MOST_BAD_STEPS} times up to step {training.step}{which}: lower learning_rate, "
        "or leave those images out; "
        f"the last good checkpoint is step {checkpoint.latest_step(training.run)}"
    )


def _look(training: Training, step: Step) -> Step:
    """Measure and draw where it is time to, and log the step."""
    config, last = training.config, training.step == training.config.max_steps
    measures = training.step % config.validate_every_steps == 0 or last
    draws = training.step % config.preview_every_steps == 0 or last
    if measures or draws:
        with training.averaged():
            if measures:
                unet = training.accelerator.unwrap_model(training.unet)
                held_out = training.held_out(unet, training.device)
                probe = training.probe(unet, training.device)
                step = replace(step, held_out_loss=held_out, probe_loss=probe)
            if draws and training.accelerator.is_main_process:
                training.log.show(
                    write_preview(
                        training.run, training.step, training.parts, config, training.prompts
                    )
                )
    training.log.add(asdict(step))
    training.stopped_early = step.held_out_loss is not None and training.has_learnt_all()
    return step


def _is_time_to_save(training: Training) -> bool:
    last = training.step == training.config.max_steps or training.stopped_early
    is_best = best_of(training.log.held_out)[0] == training.step
    minutes = (time.monotonic() - training.saved_at) / 60
    is_late = 0 < training.config.save_every_minutes <= minutes
    is_due = training.step % training.config.save_every_steps == 0
    return is_due or is_late or last or is_best


def _save(training: Training) -> None:
    """Keep a checkpoint. Processes need not agree on it: the others wait for the main one in the next step."""
    run, config = training.run, training.config
    if training.accelerator.is_main_process:
        training.log.mend()
        rows = training.log.rows
        kept = checkpoint.save(run, training.step, training.state, training.belongs, rows)
        best_step = best_of(training.log.held_out)[0]
        checkpoint.prune(run, kept, config.keep_checkpoints, best_step)
        training.count_seconds()
        sync_soon(run)
    training.saved_step, training.saved_at = training.step, time.monotonic()


def _stop_before(number: int) -> NoReturn:
    raise Stopped("stopped before the first step: run 04_train again", number)


def _stop_if_asked(training: Training, interrupts: Interrupts) -> None:
    """Stop where a signal came during the step, in all processes if it came to one of them."""
    asked = bool(interrupts.asked)
    if interrupts.is_one_of_many:
        if asked:
            training.accelerator.set_trigger()
        asked = training.accelerator.check_trigger()
    if asked:
        _stop(training, interrupts.asked or signal.SIGTERM)


def _stop(training: Training, number: int) -> NoReturn:
    """Save once, if that is not done, and say how to go on."""
    if training.step == 0:
        _stop_before(number)
    if training.step > training.saved_step:
        _save(training)
    training.accelerator.wait_for_everyone()
    raise Stopped(
        f"stopped after step {training.step} of {training.config.max_steps}, which is kept: "
        "run 04_train again to go on",
        number,
    )


def verify_model(run: Run) -> str:
    """Check model/ against its manifest and say what training came to.

    Raises RunError if a file is missing or changed, or training has not ended.
    """
    verdict = run.read_verdict()
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    change = verdict["last"] / verdict["base"] - 1
    return (
        f"{run.model} is complete: held-out loss {verdict['base']:.4f} -> {verdict['last']:.4f} "
        f"({change:+.0%}); {verdict['words']}{_remarks(run, verdict)}{_unfinished(run, verdict)}"
    )


def _unfinished(run: Run, verdict: dict[str, Any]) -> str:
    """What is kept of a training that has not ended, where model/ is an earlier one's."""
    step = max((int(row["step"]) for row in read_log(run.train_log)), default=verdict["steps"])
    asked = run.read_config("train")["max_steps"]
    has_ended = asked <= verdict["steps"] or verdict.get("stopped_early", False)
    if step == verdict["steps"] and has_ended:
        return ""
    return (
        f"; but this is the model of a training that ended at step {verdict['steps']}, and the one under way, of "
        f"{asked} steps, is at step {step}, {_kept_of(run, step)}: run the cell under Train again, and it goes on"
    )


def _kept_of(run: Run, step: int) -> str:
    kept = checkpoint.latest_step(run)
    if kept == 0:
        return "with no checkpoint yet"
    return "which is kept" if kept == step else f"kept up to step {kept}"


def _remarks(run: Run, verdict: dict[str, Any]) -> str:
    remarks = ""
    if not (run.dataset / MANIFEST).is_file():
        remarks += "; dataset/ is gone since, and 03_dataset makes it again"
    elif folder_hash(run.dataset) != verdict["dataset"]:
        remarks += "; dataset/ has changed since, and 04_train trains on it when it is run again"
    if verdict.get("exported_step", verdict["steps"]) != verdict["steps"]:
        loss = verdict.get("exported_loss")  # older versions did not tell
        at = f", with {loss:.4f}" if loss is not None else ""
        remarks += f"; the model is step {verdict['exported_step']}'s{at}"
    if verdict.get("skipped"):
        remarks += f"; {verdict['skipped']} steps were passed over, their loss being no number"
    return remarks
