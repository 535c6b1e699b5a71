"""The training loop. `train` is a generator: it computes and keeps, and whoever reads it watches."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor

from helpers.colab import keep as keep_on_drive
from helpers.config import TrainConfig
from helpers.device import Device, pick_device
from helpers.errors import RunError
from helpers.records import read_metadata
from helpers.run import Run
from helpers.store import damage, folder_hash, read_json, write_json
from helpers.train import checkpoint
from helpers.train.batches import Batches
from helpers.train.cache import image_examples, prior_examples, text_examples
from helpers.train.ema import MovingAverage
from helpers.train.export import save_model
from helpers.train.loss import FixedLoss, diffusion_loss, snr_weights
from helpers.train.model import fingerprint, load_parts, make_trainable
from helpers.train.optimizer import make_optimizer, restore_layout, step_if_finite
from helpers.train.plan import memory_errors, refuse_slow, refuse_too_large
from helpers.train.preview import write_preview
from helpers.train.track import Log, tracker_of
from helpers.train.verdict import Verdict, best_of, judge, worst_first

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
    "save_every_steps",
    "validate_every_steps",
    "preview_every_steps",
    "early_stopping_patience",
    "tracker",
)
MOST_BAD_STEPS = 5


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


def train(config: TrainConfig, run: Run) -> Iterator[Step]:
    """Fine-tune, yielding each optimizer step; a rerun goes on from the newest checkpoint, or does nothing.

    Step 0 is the base model, measured. At the end model/ holds a pipeline and verdict.json the outcome.
    Raises RunError where the dataset or the base model is missing, a checkpoint belongs to another
    training, it will not fit, a full-size model would train without a GPU, or the loss stops being a number.
    """
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    device = pick_device(config.mixed_precision, config.attention)
    refuse_slow(config, device)
    refuse_too_large(config, run, device)
    with memory_errors(config):
        training = Training(config, run, device)
        yield from training.steps()
        training.finish()


def is_finished(config: TrainConfig, run: Run) -> bool:
    """Whether this very training has come as far as asked, and left its model."""
    if not (run.config("train").is_file() and run.verdict.is_file()) or damage(run.model):
        return False
    verdict, done = read_json(run.verdict), run.read_config("train")
    same_settings = (
        TrainConfig(**done | {name: getattr(config, name) for name in NOT_LEARNT}) == config
    )
    same_data = verdict["dataset"] == folder_hash(run.dataset)
    stopped = verdict.get("stopped_early", False) and config.early_stopping_patience > 0
    return same_settings and same_data and (stopped or verdict["steps"] >= config.max_steps)


class Training:
    """A training under way: the parts, the examples, and what they are optimised with."""

    def __init__(self, config: TrainConfig, run: Run, device: Device) -> None:
        self.config, self.run, self.device = config, run, device
        self.counted_until = time.perf_counter()
        self.accelerator = Accelerator(
            mixed_precision=device.precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            cpu=device.device.type == "cpu",
            step_scheduler_with_optimizer=False,
            log_with=tracker_of(config),
            project_dir=run.folder,
        )
        self.parts = load_parts(config.base_model, device, config.train_text_encoder)
        self.belongs = self._belongs()
        with self.accelerator.main_process_first():
            self._make_examples()
        self._make_optimizer()
        self.step = checkpoint.resume(run, self.state, self.belongs)
        restore_layout(self.optimizer.optimizer)
        if self.accelerator.is_main_process:
            run.write_config("train", config)
        self.log = Log(run, self.step, self.accelerator)
        self.stopped_early = self._has_learnt_all()

    def _belongs(self) -> checkpoint.Belongs:
        learnt = {k: v for k, v in asdict(self.config).items() if k not in NOT_LEARNT}
        return checkpoint.Belongs(
            learnt, fingerprint(self.parts.unet), folder_hash(self.run.dataset)
        )

    def _make_examples(self) -> None:
        """Have all that the frozen parts compute computed, once."""
        config, run, parts = self.config, self.run, self.parts
        suffix = run.read_config("dataset")["suffix"]
        rows = {
            split: read_metadata(run.split_metadata(split)) for split in ("train", "validation")
        }
        images = {split: image_examples(run, parts, config, split, rows[split]) for split in rows}
        captions = [text.removesuffix(suffix) for _, text in rows["train"]]
        prior = round(config.prior_share * len(captions))
        examples = images["train"]
        if prior:
            asked = [captions[i % len(captions)] for i in range(prior)]
            examples = examples + prior_examples(run, parts, config, asked)
        no_words = text_examples(run, parts, config, "empty", [""])
        timesteps = parts.noise_scheduler.config.num_train_timesteps
        self.batches = Batches(examples, no_words, timesteps, config, self.accelerator)
        self.images = images["train"]
        self.held_out = FixedLoss(images["validation"], parts.noise_scheduler, config.seed)
        self.probe = FixedLoss(images["train"], parts.noise_scheduler, config.seed)
        self.prompts = [f"{prompt}{suffix}" for prompt in config.prompts] or [
            rows["validation"][i * len(rows["validation"]) // 4][1] for i in range(4)
        ]

    def _make_optimizer(self) -> None:
        config = self.config
        trained = make_trainable(
            self.parts.unet, self.parts.text_encoder, config, self.device.dtype
        )
        self.weights = {name: p for name, p in trained.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(self.weights, config, self.device)
        self.unet, self.optimizer = self.accelerator.prepare(trained, optimizer)
        if config.torch_compile:
            self.parts.unet.compile_repeated_blocks()
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_steps,
        )
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

    def steps(self) -> Iterator[Step]:
        """Step 0, measured, and then every optimizer step; checkpoints are kept in between."""
        config = self.config
        self.unet.train()
        if self.step == 0:
            yield self._look(Step(0, math.nan, 0.0, 0.0))
        bad_steps = 0
        batch = self.batches.of_step(self.step)
        while self.step < config.max_steps and not self.stopped_early:
            began = time.perf_counter()
            losses, gradient_norm = self._optimise_once(batch)
            batch = self.batches.of_step(self.step)  # made while the GPU works
            loss = float(losses.mean())  # waits for it
            rate = self.batches.images_per_step / (time.perf_counter() - began)
            bad_steps = bad_steps + 1 if self._was_skipped(loss, float(gradient_norm)) else 0
            if bad_steps == MOST_BAD_STEPS:
                raise RunError(self._no_number(losses))
            learning_rate = self.schedule.get_last_lr()[0]
            yield self._look(Step(self.step, loss, learning_rate, rate, self.log.skipped))
            if self._is_time_to_save():
                self._save()

    def _optimise_once(self, batch: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        """One optimizer step over the effective batch.

        Returns the unweighted loss of each image (micro-batch, image), over all processes, and the
        gradient's norm; reading either waits for the device.
        """
        losses = []
        for latents, texts, noise, timesteps in batch:
            with self.accelerator.accumulate(self.unet):
                with self.accelerator.autocast():
                    each = diffusion_loss(
                        self.unet, self.parts.noise_scheduler, latents, texts, noise, timesteps
                    )
                weights = snr_weights(self.parts.noise_scheduler, timesteps, self.config.snr_gamma)
                self.accelerator.backward((each * weights).mean())
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.weights.values(), self.config.max_grad_norm
                    )
                    step_if_finite(self.optimizer, norm)
                self.optimizer.zero_grad()
            losses.append(each.detach())
        self.schedule.step()
        self.step += 1
        if self.average:
            self.average.update(self.step)
        return self.accelerator.gather(torch.stack(losses, dim=1)).T, norm

    def _was_skipped(self, loss: float, gradient_norm: float) -> bool:
        """Count a step that was passed over. A gradient too large for fp16 alone is no fault: its scale is found so."""
        self.log.skipped += not (math.isfinite(loss) and math.isfinite(gradient_norm))
        return not math.isfinite(loss if self.accelerator.scaler else loss + gradient_norm)

    def _no_number(self, losses: Tensor) -> str:
        """The message of a training whose loss stays no number."""
        bad = (~losses.isfinite()).cpu()
        named = zip(self.batches.names(self.step - 1), bad.tolist(), strict=True)
        names = {n for names, flags in named for n, f in zip(names, flags, strict=True) if f}
        which = f" (last with {', '.join(sorted(names)[:8])})" if names else ""
        return (
            f"the loss was no number {MOST_BAD_STEPS} times up to step {self.step}{which}: lower learning_rate, "
            "or leave those images out; "
            f"the last good checkpoint is step {checkpoint.latest_step(self.run)}"
        )

    def _averaged(self) -> AbstractContextManager:
        """Have the moving average in the model inside, where there is one."""
        return self.average.applied() if self.average else nullcontext()

    def _look(self, step: Step) -> Step:
        """Measure and draw where it is time to, and log the step."""
        config, last = self.config, self.step == self.config.max_steps
        measures = self.step % config.validate_every_steps == 0 or last
        draws = self.step % config.preview_every_steps == 0 or last
        if measures or draws:
            with self._averaged():
                if measures:
                    unet = self.accelerator.unwrap_model(self.unet)
                    losses = self.held_out(unet, self.device), self.probe(unet, self.device)
                    step = replace(step, held_out_loss=losses[0], probe_loss=losses[1])
                if draws and self.accelerator.is_main_process:
                    write_preview(self.run, self.step, self.parts, config, self.prompts)
        self.log.add(asdict(step))
        self.stopped_early = step.held_out_loss is not None and self._has_learnt_all()
        return step

    def _has_learnt_all(self) -> bool:
        """Whether the held-out loss has had no new lowest for as many measurements as were asked for."""
        patience, curve = self.config.early_stopping_patience, self.log.held_out
        return (
            0 < patience < len(curve) and len(curve) - 1 - curve.index(best_of(curve)) >= patience
        )

    def _is_time_to_save(self) -> bool:
        last = self.step == self.config.max_steps or self.stopped_early
        is_best = best_of(self.log.held_out)[0] == self.step
        return self.step % self.config.save_every_steps == 0 or last or is_best

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(self.run, self.step, self.state, self.belongs)
            best_step = best_of(self.log.held_out)[0]
            checkpoint.prune(self.run, self.config.keep_checkpoints, best_step)
            self._count_seconds()
            keep_on_drive(self.run)
        self.accelerator.wait_for_everyone()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.run.add_seconds("train", now - self.counted_until)
        self.counted_until = now

    def finish(self) -> None:
        """Leave the verdict and the model: the best checkpoint's where it overfits, else the last."""
        if self.accelerator.is_main_process:
            verdict = judge(self.log.held_out)
            exported = self._pick(verdict)
            save_model(self.run, self.config, self.parts)
            self._compare_images()
            self.log.close()
            origin = {"dataset": self.belongs.dataset, "base_model": self.belongs.base_model}
            came = {"steps": self.step, "stopped_early": self.stopped_early}
            came |= {"exported_step": exported, "skipped": self.log.skipped}
            write_json(self.run.verdict, vars(verdict) | came | origin)
            self._count_seconds()
        self.accelerator.wait_for_everyone()

    def _pick(self, verdict: Verdict) -> int:
        """Put the weights to be exported into the model; the step that they are of."""
        best_step = best_of(self.log.held_out)[0]
        overfits = verdict.words.startswith("overfitting")
        step = best_step if overfits and self.run.checkpoint(best_step).is_dir() else self.step
        if damage(self.run.checkpoint(step)) is None:
            checkpoint.load_weights(self.run.checkpoint(step), self.weights, average=True)
        return step

    def _compare_images(self) -> None:
        """Keep the loss of each training image (256 at most), the worst-fitting first."""
        some = self.images.first(256)
        measure = FixedLoss(some, self.parts.noise_scheduler, self.config.seed, 4 * len(some), True)
        losses = measure.of_images(self.accelerator.unwrap_model(self.unet), self.device)
        write_json(self.run.image_losses, worst_first(some.names, losses))


def verify_model(run: Run) -> str:
    """Check model/ against its manifest and say what training came to.

    Raises RunError if a file is missing or changed, or training has not ended.
    """
    run.require(run.verdict, "train")
    if what := damage(run.model):
        raise RunError(f"{what}: run 04_train again")
    verdict = read_json(run.verdict)
    change = verdict["last"] / verdict["base"] - 1
    return (
        f"{run.model} is complete: held-out loss {verdict['base']:.4f} -> {verdict['last']:.4f} "
        f"({change:+.0%}); {verdict['words']}{_remarks(verdict)}"
    )


def _remarks(verdict: dict[str, Any]) -> str:
    remarks = ""
    if verdict.get("exported_step", verdict["steps"]) != verdict["steps"]:
        remarks += f"; the model is step {verdict['exported_step']}'s"
    if verdict.get("skipped"):
        remarks += f"; {verdict['skipped']} steps were passed over, their loss being no number"
    return remarks
