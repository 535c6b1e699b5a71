"""The training loop: `train` runs and yields each optimizer step, so that a notebook can show progress.

One step is read here, in data.py (the batch), loss.py (forward and backward) and optim.py (clip and step). prepare.py
builds what it works with, finish.py exports the model and judges the training.
"""

import math
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from helpers.config import TrainConfig
from helpers.core.errors import DivergedError, RunError, Stopped
from helpers.core.files import find_corruption, locked_by_process
from helpers.core.run import Run
from helpers.host.device import Device, memory_gb, pick_device
from helpers.mirror.sync import sync_soon
from helpers.train import checkpoint
from helpers.train.data import Batch
from helpers.train.finish import finish, is_finished
from helpers.train.interrupt import Interrupts
from helpers.train.limits import machine_errors, refuse_slow
from helpers.train.optim import TrainState, clip_and_step
from helpers.train.prepare import Training, prepare
from helpers.train.preview import write_preview
from helpers.train.resources import refuse_too_large
from helpers.train.verdict import best_point, has_stopped_improving

MAX_NONFINITE_STEPS = 5  # in a row
Sync = Callable[[Run], None]  # schedules a copy of what is new in a run


@dataclass(frozen=True)
class Step:
    """The record of an optimizer step in train_log.jsonl. A step without evaluation has no evaluation losses."""

    step: int
    loss: float
    learning_rate: float  # after the step, which is the next one's
    images_per_s: float
    skipped: int = 0  # steps so far whose loss or gradient was NaN or inf; they count as steps
    held_out_loss: float | None = None  # the validation loss
    probe_loss: float | None = None  # the same measure on training images

    @property
    def progress(self) -> str:
        """The text beside a progress bar: loss, learning rate, images per second and memory."""
        return (
            f"loss {self.loss:.4f}, rate {self.learning_rate:.2g}, {self.images_per_s:.1f} images/s, "
            f"{memory_gb():.1f} GB"
        )

    def __str__(self) -> str:
        if self.step == 0:
            return f"step 0, the base model: validation loss {self.held_out_loss:.4f}"
        return f"step {self.step}: {self.progress}"


class Steps(Iterator[Step]):
    """An iterator over the steps of a training. Iterating again after a stop or an error resumes the training."""

    def __init__(self, begin: Callable[[], Generator[Step]]) -> None:
        self._begin = begin
        self._steps = self._begin()

    def __iter__(self) -> "Steps":
        if self._steps.gi_frame is None:  # it has ended, for whatever reason
            self._steps = self._begin()
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        """Stop training at the current step without saving; saved checkpoints stay."""
        self._steps.close()


def train(config: TrainConfig, run: Run, sync: Sync = sync_soon) -> Steps:
    """Fine-tune the base model, and yield each optimizer step.

    A rerun resumes from the newest checkpoint, or does nothing if finished. Step 0 is the base model, evaluated. At the
    end model/ holds a pipeline and verdict.json the outcome. `sync` is called after every checkpoint.
    Raises RunError if the dataset or the base model is missing or damaged, a checkpoint belongs to another training,
    another process trains this run, memory or disk will not suffice, a full-size model would train without a GPU,
    the disk refuses a checkpoint, or the loss stays NaN; Stopped after SIGINT or SIGTERM, once the last step is saved.
    """
    return Steps(partial(_train, config, run, sync))


def _train(config: TrainConfig, run: Run, sync: Sync) -> Generator[Step]:
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    with machine_errors(config), Interrupts(_stop_before) as interrupts, _only_process(run):
        training, state = prepare(config, run, _check(config, run))
        interrupts.stop = partial(_stop, training, state, sync)
        interrupts.is_distributed = training.accelerator.num_processes > 1
        with closing(training.log):
            yield from _steps(training, state, sync, interrupts)
            finish(training, state)


@contextmanager
def _only_process(run: Run) -> Iterator[None]:
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher started
    lock = locked_by_process(run.train_lock) if is_first else nullcontext(True)
    with lock as is_mine:
        if not is_mine:
            raise RunError(f"{run.folder} is trained by another process: wait for it, or stop it")
        yield


def _check(config: TrainConfig, run: Run) -> Device:
    if what := find_corruption(run.dataset):
        raise RunError(f"{what}: run 03_dataset again")
    device = pick_device(config.mixed_precision, config.attention, config.capture)
    refuse_slow(config, device)
    refuse_too_large(config, run, device)
    return device


def _steps(
    training: Training, state: TrainState, sync: Sync, interrupts: Interrupts
) -> Iterator[Step]:
    training.model.train()
    if state.step == 0:
        with interrupts.busy():
            step = evaluate_and_log(training, state, Step(0, math.nan, 0.0, 0.0))
        _stop_if_asked(training, state, sync, interrupts)
        yield step
    batch = training.data.get_batch(state.step)
    while state.step < training.config.max_steps and not state.stopped_early:
        with interrupts.busy():
            step, batch = train_step(training, state, batch)
            if _is_time_to_save(training, state):
                _save(training, state, sync)
        _stop_if_asked(training, state, sync, interrupts)
        yield step


def train_step(training: Training, state: TrainState, batch: Batch) -> tuple[Step, Batch]:
    """Run and log one optimizer step; return the Step and the next batch. Raises DivergedError if losses stay NaN."""
    began = time.perf_counter()
    losses, grad_norm = optimizer_step(training, state, batch)
    batch = training.data.get_batch(state.step)  # made while the GPU works
    loss, norm = torch.stack([losses.mean(), grad_norm]).tolist()  # the one GPU sync of a step
    images_per_s = training.data.images_per_step / (time.perf_counter() - began)
    training.log.skipped += not (math.isfinite(loss) and math.isfinite(norm))
    # with fp16 an infinite gradient is no fault: GradScaler lowers its scale by it
    if math.isfinite(loss if state.scaler else loss + norm):
        state.nonfinite_steps.clear()
    else:
        state.nonfinite_steps.append(_nonfinite_images(training, state, losses))
    if len(state.nonfinite_steps) == MAX_NONFINITE_STEPS:
        raise DivergedError(_divergence(training, state))
    learning_rate = state.lr_scheduler.get_last_lr()[0]
    step = Step(state.step, loss, learning_rate, images_per_s, training.log.skipped)
    return evaluate_and_log(training, state, step), batch


def optimizer_step(training: Training, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run the forward and backward pass of every micro-batch, then step the optimizer once.

    Returns the unweighted loss of each image (micro-batch, image), over all processes, and the gradient norm. Both
    are on the device: reading one waits for the device.
    """
    accelerator, losses = training.accelerator, []
    for micro_batch in batch:
        with accelerator.accumulate(training.model):
            losses.append(training.forward_backward(**micro_batch))
            if accelerator.sync_gradients:
                grad_norm = clip_and_step(accelerator, state, training.config.max_grad_norm)
                # a captured step adds to the same gradient buffers every time
                state.optimizer.zero_grad(set_to_none=not training.device.captures)
    state.lr_scheduler.step()
    state.step += 1
    if state.ema:
        state.ema.update(state.step)
    # (images, micro-batches) of each process, gathered on dim 0
    return accelerator.gather(torch.stack(losses, dim=1)).T, grad_norm


def _nonfinite_images(training: Training, state: TrainState, losses: Tensor) -> set[str]:
    is_bad = (~losses.isfinite()).tolist()
    micro_batches = zip(training.data.names(state.step - 1), is_bad, strict=True)
    return {n for names, flags in micro_batches for n, bad in zip(names, flags, strict=True) if bad}


def _divergence(training: Training, state: TrainState) -> str:
    names, last_good = set().union(*state.nonfinite_steps), checkpoint.latest_step(training.run)
    images = f", with {', '.join(sorted(names)[:8])}" if names else ""
    return (
        f"loss was NaN or inf for {MAX_NONFINITE_STEPS} consecutive steps (last: step {state.step}{images}): lower "
        f"learning_rate, or leave those images out; the last good checkpoint is step {last_good}"
    )


def evaluate_and_log(training: Training, state: TrainState, step: Step) -> Step:
    """Log a step, with evaluation losses and a preview if they are due. Return the Step with its evaluation losses."""
    config, is_last = training.config, state.step == training.config.max_steps
    evaluates = state.step % config.validate_every_steps == 0 or is_last
    draws = state.step % config.preview_every_steps == 0 or is_last
    if evaluates or draws:
        with state.ema.applied() if state.ema else nullcontext():
            if evaluates:
                model = training.accelerator.unwrap_model(training.model)
                step = replace(
                    step,
                    held_out_loss=training.val_loss(model, training.device),
                    probe_loss=training.train_eval_loss(model, training.device),
                )
            if draws and training.accelerator.is_main_process:
                components, prompts = training.components, training.datasets.prompts
                path = write_preview(training.run, state.step, components, config, prompts)
                training.log.show(path)
    training.log.add(asdict(step))
    if evaluates:
        state.stopped_early = has_stopped_improving(training.log.val_curve, config)
    return step


def _is_time_to_save(training: Training, state: TrainState) -> bool:
    config = training.config
    minutes = (time.monotonic() - state.saved_at) / 60
    return (
        state.step % config.save_every_steps == 0
        or 0 < config.save_every_minutes <= minutes
        or state.step == config.max_steps
        or state.stopped_early
        or best_point(training.log.val_curve)[0] == state.step
    )


def _save(training: Training, state: TrainState, sync: Sync) -> None:
    run, config, log = training.run, training.config, training.log
    if training.accelerator.is_main_process:  # the others wait in their next step
        log.repair()
        folder = checkpoint.save(run, state, training.signature, log.rows)
        checkpoint.prune(run, folder, config.keep_checkpoints, best_point(log.val_curve)[0])
        log.count_seconds()
        sync(run)
    state.saved_step, state.saved_at = state.step, time.monotonic()


def _stop_before(number: int) -> NoReturn:
    raise Stopped("stopped before the first step: run 04_train again", number)


def _stop_if_asked(
    training: Training, state: TrainState, sync: Sync, interrupts: Interrupts
) -> None:
    asked = bool(interrupts.asked)
    if interrupts.is_distributed:
        if asked:
            training.accelerator.set_trigger()
        asked = training.accelerator.check_trigger()
    if asked:
        _stop(training, state, sync, interrupts.asked or signal.SIGTERM)


def _stop(training: Training, state: TrainState, sync: Sync, number: int) -> NoReturn:
    if state.step == 0:
        _stop_before(number)
    if state.step > state.saved_step:
        _save(training, state, sync)
    training.accelerator.wait_for_everyone()
    raise Stopped(
        f"stopped after step {state.step} of {training.config.max_steps}, which is kept: run 04_train again to go on",
        number,
    )
