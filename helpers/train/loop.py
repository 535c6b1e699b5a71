"""The training loop. `train` is a generator: it computes and keeps, and whoever reads it watches."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from helpers.colab import keep as keep_on_drive
from helpers.config import TrainConfig
from helpers.device import pick_device
from helpers.errors import RunError
from helpers.records import read_log, read_metadata
from helpers.run import Run
from helpers.store import append_line, damage, folder_hash, read_json, write_json, write_text
from helpers.train import checkpoint
from helpers.train.cache import encode_texts, image_examples, prior_examples
from helpers.train.export import save_model
from helpers.train.loss import FixedLoss, diffusion_loss, snr_weights
from helpers.train.model import fingerprint, load_parts, make_trainable, refuse_slow
from helpers.train.order import draws_at, image_at
from helpers.train.preview import write_preview
from helpers.train.verdict import judge

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
)
MOST_BAD_STEPS = 5


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. Losses at fixed noise are there on the steps that measured them."""

    step: int
    loss: float
    learning_rate: float
    images_per_s: float
    held_out_loss: float | None = None
    probe_loss: float | None = None  # the same measure on training images


def train(config: TrainConfig, run: Run) -> Iterator[Step]:
    """Fine-tune, yielding each optimizer step; a rerun goes on from the newest checkpoint, or does nothing.

    Step 0 is the base model, measured. At the end model/ holds a pipeline and verdict.json the outcome.
    Raises RunError where the dataset or the base model is missing, a checkpoint belongs to another
    training, a full-size model would train without a GPU, or the loss stops being a number.
    """
    run.require(run.split_metadata("train"), "dataset")
    if is_finished(config, run):
        return
    refuse_slow(config, pick_device(config.mixed_precision, config.attention))
    training = Training(config, run)
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
    return same_settings and same_data and verdict["steps"] >= config.max_steps


class Training:
    """A training under way: the parts, the examples, and what they are optimised with."""

    def __init__(self, config: TrainConfig, run: Run) -> None:
        self.config, self.run = config, run
        self.counted_until = time.perf_counter()
        self.device = pick_device(config.mixed_precision, config.attention)
        self.accelerator = Accelerator(
            mixed_precision=self.device.precision,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            cpu=self.device.device.type == "cpu",
            step_scheduler_with_optimizer=False,
        )
        self.parts = load_parts(config.base_model, self.device)
        self.belongs = self._belongs()
        self.suffix = run.read_config("dataset")["suffix"]
        with self.accelerator.main_process_first():
            self._make_examples()
        self._make_optimizer()
        self.step = checkpoint.resume(
            run, self.weights, self.optimizer, self.schedule, self.belongs
        )
        if self.accelerator.is_main_process:
            run.write_config("train", config)
            self._cut_log()
            self.board = SummaryWriter(run.tensorboard, purge_step=self.step + 1)

    def _belongs(self) -> checkpoint.Belongs:
        learnt = {k: v for k, v in asdict(self.config).items() if k not in NOT_LEARNT}
        return checkpoint.Belongs(
            learnt, fingerprint(self.parts.unet), folder_hash(self.run.dataset)
        )

    def _make_examples(self) -> None:
        """Have all that the frozen parts compute computed, once."""
        config, run, parts = self.config, self.run, self.parts
        rows = {
            split: read_metadata(run.split_metadata(split)) for split in ("train", "validation")
        }
        images = {split: image_examples(run, parts, config, split, rows[split]) for split in rows}
        captions = [text.removesuffix(self.suffix) for _, text in rows["train"]]
        prior = round(config.prior_share * len(captions))
        self.examples = images["train"]
        if prior:
            asked = [captions[i % len(captions)] for i in range(prior)]
            self.examples = self.examples + prior_examples(run, parts, config, asked)
        self.no_words = encode_texts(parts, [""])  # (1, T, D)
        self.held_out = FixedLoss(images["validation"], parts.noise_scheduler, config.seed)
        self.probe = FixedLoss(images["train"], parts.noise_scheduler, config.seed)
        self.prompts = [f"{prompt}{self.suffix}" for prompt in config.prompts] or [
            rows["validation"][i * len(rows["validation"]) // 4][1] for i in range(4)
        ]

    def _make_optimizer(self) -> None:
        config = self.config
        self.weights = make_trainable(self.parts.unet, config)
        optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=self.device.device.type == "cuda",
        )
        self.unet, self.optimizer = self.accelerator.prepare(self.parts.unet, optimizer)
        self.schedule = get_scheduler(
            config.lr_scheduler,
            optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_steps,
        )

    def _cut_log(self) -> None:
        """Take steps out of the log that came after the checkpoint, so that each stands there once."""
        if self.run.train_log.is_file():
            rows = read_log(self.run.train_log) if self.step else []
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.step]
            write_text(self.run.train_log, "".join(kept))

    @cached_property
    def images_per_step(self) -> int:
        """The effective batch: over accumulation and processes."""
        per_process = self.config.train_batch_size * self.config.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def steps(self) -> Iterator[Step]:
        config = self.config
        self.unet.train()
        if self.step == 0:
            yield self._look(Step(0, math.nan, 0.0, 0.0))
        bad_steps = 0
        while self.step < config.max_steps:
            began = time.perf_counter()
            loss = self._optimise_once()
            rate = self.images_per_step / (time.perf_counter() - began)
            bad_steps = 0 if math.isfinite(loss) else bad_steps + 1
            if bad_steps == MOST_BAD_STEPS:
                raise RunError(
                    f"the loss was no number {MOST_BAD_STEPS} times up to step {self.step}: lower learning_rate; "
                    f"the last good checkpoint is step {checkpoint.latest_step(self.run)}"
                )
            yield self._look(Step(self.step, loss, self.schedule.get_last_lr()[0], rate))
            if self.step % config.save_every_steps == 0 or self.step == config.max_steps:
                self._save()

    def _optimise_once(self) -> float:
        """One optimizer step over the effective batch; the mean of its unweighted loss."""
        total = 0.0
        for micro in range(self.config.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.unet):
                latents, texts, noise, timesteps = self._batch(micro)
                with self.accelerator.autocast():
                    losses = diffusion_loss(
                        self.unet, self.parts.noise_scheduler, latents, texts, noise, timesteps
                    )
                weights = snr_weights(self.parts.noise_scheduler, timesteps, self.config.snr_gamma)
                self.accelerator.backward((losses * weights).mean())
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(
                        self.weights.values(), self.config.max_grad_norm
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
            total += self.accelerator.gather(losses.detach()).mean().item()
        self.schedule.step()
        self.step += 1
        return total / self.config.gradient_accumulation_steps

    def _batch(self, micro: int) -> tuple[Tensor, ...]:
        """This process's share of a micro-batch: latents, texts, noise and timesteps, on the device."""
        config, count = self.config, len(self.examples)
        size = config.train_batch_size
        first = self.step * self.images_per_step
        first += (micro * self.accelerator.num_processes + self.accelerator.process_index) * size
        positions = range(first, first + size)
        shape = self.examples.latents.shape[1:]
        timesteps = self.parts.noise_scheduler.config.num_train_timesteps
        picked = [image_at(p, count, config.seed) for p in positions]
        noise, times, chances = zip(
            *(draws_at(p, shape, timesteps, config.seed) for p in positions), strict=True
        )
        words_dropped = torch.tensor(chances)[:, None, None] < config.caption_dropout
        texts = torch.where(words_dropped, self.no_words, self.examples.texts[picked])
        noise = self._offset(torch.stack(noise), positions)
        tensors = (self.examples.latents[picked], texts, noise, torch.tensor(times))
        return tuple(tensor.to(self.accelerator.device) for tensor in tensors)

    def _offset(self, noise: Tensor, positions: range) -> Tensor:
        """Noise offset (crosslabs.org, 2023): lets a model learn pictures that are dark or bright as a whole."""
        if self.config.noise_offset == 0:
            return noise
        draws = [
            draws_at(p, torch.Size((noise.shape[1], 1, 1)), 1, self.config.seed + 1)[0]
            for p in positions
        ]
        return noise + self.config.noise_offset * torch.stack(draws)

    def _look(self, step: Step) -> Step:
        """Measure and draw where it is time to, and log the step."""
        config, last = self.config, self.step == self.config.max_steps
        if self.step % config.validate_every_steps == 0 or last:
            unet = self.accelerator.unwrap_model(self.unet)
            held_out, probe = self.held_out(unet, self.device), self.probe(unet, self.device)
            step = Step(**{**asdict(step), "held_out_loss": held_out, "probe_loss": probe})
        if self.accelerator.is_main_process:
            if self.step % config.preview_every_steps == 0 or last:
                write_preview(self.run, self.step, self.parts, config, self.prompts)
            self._log(step)
        return step

    def _log(self, step: Step) -> None:
        row = {k: v for k, v in asdict(step).items() if v is not None and not math.isnan(v)}
        append_line(self.run.train_log, json.dumps(row))
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, step.step)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            checkpoint.save(
                self.run,
                self.step,
                self.weights,
                self.optimizer,
                self.schedule,
                self.belongs,
                self.config.keep_checkpoints,
            )
            self._count_seconds()
            keep_on_drive(self.run)
        self.accelerator.wait_for_everyone()

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.run.add_seconds("train", now - self.counted_until)
        self.counted_until = now

    def finish(self) -> None:
        """Leave the model and the verdict."""
        if self.accelerator.is_main_process:
            self.board.close()
            save_model(self.run, self.config, self.parts)
            rows = read_log(self.run.train_log)
            verdict = judge([(r["step"], r["held_out_loss"]) for r in rows if "held_out_loss" in r])
            origin = {"dataset": self.belongs.dataset, "base_model": self.belongs.base_model}
            write_json(self.run.verdict, vars(verdict) | {"steps": self.step} | origin)
            self._count_seconds()
        self.accelerator.wait_for_everyone()


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
        f"({change:+.0%}); {verdict['words']}"
    )
