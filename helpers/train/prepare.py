"""What is prepared before the first step: the model, the examples, the optimizer, and where to go on from."""

import ctypes
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.optimization import get_scheduler
from torch import Tensor

from helpers.config import TrainConfig
from helpers.core.files import folder_hash
from helpers.core.records import read_metadata
from helpers.core.run import Run
from helpers.core.suffix import append_suffix, strip_suffix
from helpers.host.device import Device
from helpers.models.capture import Captured
from helpers.train import checkpoint
from helpers.train.buckets import Framing
from helpers.train.data import Batches
from helpers.train.ema import MovingAverage
from helpers.train.inputs import fit_texts, require_room, what_does_not_fit
from helpers.train.latents import image_examples, prior_examples, text_examples
from helpers.train.log import Log, tracker_of
from helpers.train.loss import FixedLoss, forward_backward
from helpers.train.model import load_parts, make_trainable
from helpers.train.optim import make_optimizer, restore_layout
from helpers.train.preview import set_aside_previews
from helpers.train.verdict import best_of

log = logging.getLogger(__name__)

# Fields that change how long or how closely, not what a step learns
NOT_LEARNT = (
    "run",
    "preset",
    "max_steps",
    "prompts",
    "preview_seed",
    "keep_checkpoints",
    "allow_slow",
    "attention",
    "capture",
    "save_every_steps",
    "validate_every_steps",
    "preview_every_steps",
    "early_stopping_patience",
    "tracker",
    "save_every_minutes",
    "sweep",
    "sweep_trials",
    "sweep_storage",
    "usd_per_hour",
    # these take memory or time, and give the same result
    "gradient_checkpointing",
    "offload_ema",
    "torch_compile",
    # what a step takes in is their product, which is compared
    "train_batch_size",
    "gradient_accumulation_steps",
)


def learnt_from(config: TrainConfig, processes: int) -> dict[str, Any]:
    """What a step learns from: the settings that matter, and how many images it takes in, over all processes.

    Where there are buckets, a micro-batch's size decides which images come together.
    """
    learnt = {k: v for k, v in asdict(config).items() if k not in NOT_LEARNT}
    micro_batch = config.train_batch_size * processes
    learnt["images_per_step"] = micro_batch * config.gradient_accumulation_steps
    if config.aspect_ratio_buckets:
        learnt["images_per_micro_batch"] = micro_batch
    return learnt


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, mallopt(3): to fault it in again costs some per cent."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(AttributeError, OSError):  # other systems have other allocators
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 1 << 30)


def _accelerator(config: TrainConfig, run: Run, device: Device) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    return Accelerator(
        mixed_precision=device.precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=device.device.type == "cpu",
        step_scheduler_with_optimizer=False,
        log_with=tracker_of(config),
        project_dir=run.folder,
    )


class Training:
    """A training under way: the parts, the examples, what they are optimised with, and how far it has come."""

    def __init__(self, config: TrainConfig, run: Run, device: Device) -> None:
        self.config, self.run, self.device = config, run, device
        self.counted_until = time.perf_counter()
        _keep_freed_memory()
        self.accelerator = _accelerator(config, run, device)
        self.parts = load_parts(
            config.base_model,
            device,
            config.train_text_encoder,
            train_unet=config.method == "full",
            known_hashes=run.cache / "hashes.json" if self.accelerator.is_main_process else None,
        )
        self.belongs = self._belongs()
        with self.accelerator.main_process_first():
            self._make_examples()
        self._make_optimizer()
        with self.accelerator.main_process_first():  # which clears up what kills left
            self.step = self.saved_step = checkpoint.resume(run, self.state, self.belongs)
        self.saved_at = time.monotonic()
        restore_layout(self.optimizer.optimizer)
        self._follow_schedule()
        self.forward_backward = self._forward_backward()
        if self.accelerator.is_main_process:
            if self.step == 0:
                set_aside_previews(run)
            run.write_config("train", config)
        self.log = Log(run, self.step, self.accelerator, config)
        self.bad_steps: list[set[str]] = []  # in a row, with the images whose loss was no number
        self.stopped_early = self.has_learnt_all()

    def _belongs(self) -> checkpoint.Belongs:
        learnt = learnt_from(self.config, self.accelerator.num_processes)
        unet, dataset = self.parts.hashes["unet"], folder_hash(self.run.dataset)
        return checkpoint.Belongs(learnt, unet, dataset, self.parts.fingerprints())

    def _make_examples(self) -> None:
        """Have all that the frozen parts compute computed, once."""
        config, run, parts = self.config, self.run, self.parts
        self.suffix = suffix = run.read_config("dataset")["suffix"]
        self.rows = rows = self._rows(suffix)
        images = {split: image_examples(run, parts, config, split, rows[split]) for split in rows}
        captions = [strip_suffix(text, suffix) for _, text in rows["train"]]
        examples = images["train"]
        if asked := self._prior_captions(captions, suffix):
            examples = examples + prior_examples(run, parts, config, asked)
        no_words = text_examples(run, parts, config, "empty", [""])
        timesteps = parts.noise_scheduler.config.num_train_timesteps
        self.batches = Batches(examples, no_words, timesteps, config, self.accelerator)
        self.images = images["train"]
        schedule, pairs = parts.noise_scheduler, config.validation_pairs
        self.held_out = FixedLoss(images["validation"], schedule, config.seed, pairs)
        self.probe = FixedLoss(images["train"], schedule, config.seed, pairs // 2)
        self.prompts = fit_texts(
            [append_suffix(prompt, suffix) for prompt in config.prompts], suffix, parts.tokenizer
        ) or [rows["validation"][i * len(rows["validation"]) // 4][1] for i in range(4)]

    def _rows(self, suffix: str) -> dict[str, list[tuple[str, str]]]:
        """Each split's file names and texts, cut to what the text encoder reads; what does not fit is told."""
        run, tokenizer = self.run, self.parts.tokenizer
        rows, paths, cut = {}, [], 0
        require_room(suffix, tokenizer)
        for split in ("train", "validation"):
            names, texts = zip(*read_metadata(run.split_metadata(split)), strict=True)
            fitting = fit_texts(texts, suffix, tokenizer)
            rows[split] = list(zip(names, fitting, strict=True))
            paths += [run.split(split) / name for name in names]
            cut += sum(a != b for a, b in zip(texts, fitting, strict=True))
        framing = Framing.of(self.config, self.parts.step_px, augmented=False)
        if self.accelerator.is_main_process:
            for line in what_does_not_fit(paths, framing, cut, tokenizer.model_max_length):
                log.warning(line)
        return rows

    def _prior_captions(self, captions: list[str], suffix: str) -> list[str]:
        """What the base model is asked to draw for prior preservation."""
        count = round(self.config.prior_share * len(captions))
        if count and not suffix:
            log.warning("no suffix, no prior: the base's own samples would say the same words")
            return []
        return [captions[i % len(captions)] for i in range(count)]

    def _make_optimizer(self) -> None:
        config = self.config
        trained = make_trainable(
            self.parts.unet, self.parts.text_encoder, config, self.device.dtype
        )
        self.weights = {name: p for name, p in trained.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(self.weights, config)
        # before accelerate wraps the optimizer, whose step it puts back as it found it
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_steps,
        )
        self.unet, self.optimizer = self.accelerator.prepare(trained, optimizer)
        if config.torch_compile:
            self.parts.unet.compile_repeated_blocks()
        self.average = None
        if config.use_ema:
            self.average = MovingAverage(self.weights, config.ema_decay, config.offload_ema)
        self.state = checkpoint.State(
            self.weights,
            self.optimizer,
            self.schedule,
            self.accelerator.scaler,
            self.average and self.average.average,
        )

    def _forward_backward(self) -> Callable[..., Tensor]:
        """Forward and backward pass of a micro-batch, captured where that is chosen."""
        run = partial(
            forward_backward,
            *(self.unet, self.accelerator, self.parts.noise_scheduler, self.config.snr_gamma),
        )
        if not self.device.captures:
            return run
        for weight in self.weights.values():  # replays add to the same buffers, step after step
            weight.grad = torch.zeros_like(weight)
        return Captured(run, "the training step")

    def release_steps(self) -> None:
        """Let go of what steps alone need: the gradients, and the graphs that write them."""
        self.optimizer.optimizer.zero_grad(set_to_none=True)
        self.forward_backward = None

    def _follow_schedule(self) -> None:
        """Set the rate that this max_steps has at this step, which a checkpoint with another one has otherwise."""
        factors = [of_step(self.step) for of_step in self.schedule.lr_lambdas]
        rates = [base * f for base, f in zip(self.schedule.base_lrs, factors, strict=True)]
        before = self.schedule.get_last_lr()
        if self.step and rates != before:
            log.warning(
                "max_steps is %d now: the learning rate goes on from step %d at %.3g, where it was %.3g",
                *(self.config.max_steps, self.step, rates[0], before[0]),
            )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def averaged(self) -> AbstractContextManager:
        """Have the moving average in the model inside, where there is one."""
        return self.average.applied() if self.average else nullcontext()

    def has_learnt_all(self) -> bool:
        """Whether the held-out loss has had no new lowest for as many measurements as were asked for."""
        patience, curve = self.config.early_stopping_patience, self.log.held_out
        return (
            0 < patience < len(curve) and len(curve) - 1 - curve.index(best_of(curve)) >= patience
        )

    def count_seconds(self) -> None:
        """Add the time since the last count to the run's."""
        now = time.perf_counter()
        self.run.add_seconds("train", now - self.counted_until)
        self.counted_until = now
