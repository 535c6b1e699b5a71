"""Prepare a training before its first step: model, data, optimizer, and the checkpoint to resume from."""

import ctypes
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.config.stages import RESUMABLE
from helpers.core.files import folder_hash
from helpers.core.records import read_metadata
from helpers.core.run import Run
from helpers.core.suffix import append_suffix, strip_suffix
from helpers.host.device import Device
from helpers.mirror.sync import delete_remote
from helpers.models.capture import Captured
from helpers.models.families import Conditioning
from helpers.train import checkpoint
from helpers.train.buckets import Crop
from helpers.train.data import LatentDataset, TrainData
from helpers.train.in_backward import StepInBackward, check_settings, weights_dtype
from helpers.train.inputs import check_suffix_length, dataset_warnings, truncate_captions
from helpers.train.latents import image_dataset, prior_dataset, text_embeddings
from helpers.train.log import TrainLog, tracker_of
from helpers.train.loss import forward_backward
from helpers.train.model import ModelComponents, load_components, make_trainable
from helpers.train.optim import MovingAverage, TrainState, make_optimizer, restore_layout
from helpers.train.preview import archive_previews
from helpers.train.validation_loss import ValidationLoss
from helpers.train.verdict import has_stopped_improving

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Datasets:
    """The encoded images for training and validation, and the prompts of previews."""

    suffix: str
    train: LatentDataset  # the artist's images
    mixed: LatentDataset  # with the base model's own samples, for prior preservation
    validation: LatentDataset
    captions: dict[str, str]  # of the validation images, by file name
    prompts: list[str]  # of the previews
    null_embedding: Conditioning  # of the empty caption


@dataclass(frozen=True)
class Training:
    """The objects that stay the same for all steps of a training. TrainState holds what a step changes."""

    config: TrainConfig
    run: Run
    device: Device
    accelerator: Accelerator
    components: ModelComponents
    model: nn.Module  # what is trained, as accelerate wraps it
    datasets: Datasets
    data: TrainData
    val_loss: ValidationLoss
    train_eval_loss: ValidationLoss  # the same measure on training images
    forward_backward: Callable[..., Tensor]  # of a micro-batch
    signature: checkpoint.TrainingSignature
    log: TrainLog


def prepare(config: TrainConfig, run: Run, device: Device) -> tuple[Training, TrainState]:
    """Load the model, encode the data, build the optimizer, and resume from the newest checkpoint, if any."""
    began = time.perf_counter()
    _keep_freed_memory()
    accelerator = _make_accelerator(config, run, device)
    check_settings(config, device, accelerator.num_processes)
    components = load_components(
        config.base_model,
        device,
        config.train_text_encoder,
        unet_dtype=weights_dtype(config) if config.method == "full" else device.dtype,
        known_hashes=run.cache / "hashes.json" if accelerator.is_main_process else None,
        vae=config.vae,
    )
    signature = checkpoint.TrainingSignature(
        training_signature(config, accelerator.num_processes),
        components.hashes[components.family.DENOISER[0]],
        folder_hash(run.dataset),
        components.fingerprints(),
    )
    with accelerator.main_process_first():
        datasets = _make_datasets(config, run, components, accelerator)
    model, state = _make_state(config, components, accelerator)
    with accelerator.main_process_first():  # it clears up what kills left
        if config.begin_again and accelerator.is_main_process:
            if checkpoint.set_aside(run, signature):
                delete_remote(run)
        checkpoint.resume(run, state, signature)
    state.saved_at = time.monotonic()
    restore_layout(state.optimizer.optimizer)
    _follow_lr_schedule(config, state)
    if accelerator.is_main_process:
        if state.step == 0:
            archive_previews(run)
        run.write_config("train", config)
    num_timesteps = components.objective.num_timesteps
    measure = partial(ValidationLoss, objective=components.objective, seed=config.seed)
    training = Training(
        config=config,
        run=run,
        device=device,
        accelerator=accelerator,
        components=components,
        model=model,
        datasets=datasets,
        data=TrainData(datasets.mixed, datasets.null_embedding, num_timesteps, config, accelerator),
        val_loss=measure(datasets.validation, num_eval_samples=config.validation_pairs),
        train_eval_loss=measure(datasets.train, num_eval_samples=config.validation_pairs // 2),
        forward_backward=_forward_backward(config, model, components, accelerator),
        signature=signature,
        log=TrainLog(run, state.step, accelerator, config, began),
    )
    state.stopped_early = has_stopped_improving(training.log.val_curve, config)
    return training, state


def training_signature(config: TrainConfig, processes: int) -> dict[str, Any]:
    """Return the values that change what a step learns: settings, and the number of images per step (all processes).

    With aspect-ratio buckets the micro-batch size decides which images come together, so it counts too.
    """
    learned = {k: v for k, v in asdict(config).items() if k not in RESUMABLE}
    learned["images_per_step"] = config.effective_batch_size * processes
    if config.aspect_ratio_buckets:
        learned["images_per_micro_batch"] = config.train_batch_size * processes
    return learned


def _keep_freed_memory() -> None:
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(AttributeError, OSError):  # other systems have other allocators
        mallopt = ctypes.CDLL(None).mallopt
        # steps become a few per cent faster
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 1 << 30)


def _make_accelerator(config: TrainConfig, run: Run, device: Device) -> Accelerator:
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    return Accelerator(
        mixed_precision=device.precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=device.device.type == "cpu",
        step_scheduler_with_optimizer=False,
        log_with=tracker_of(config),
        project_dir=run.folder,
        # the cache would hold a half-precision copy of every weight for the whole pass
        kwargs_handlers=[
            AutocastKwargs(cache_enabled=not config.optimizer_in_backward),
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True,  # or gradients are held twice
                # SDXL does not read its first text encoder's last layer
                find_unused_parameters=config.train_text_encoder,
            ),
        ],
    )


def _make_datasets(
    config: TrainConfig, run: Run, components: ModelComponents, accelerator: Accelerator
) -> Datasets:
    suffix = run.read_config("dataset")["suffix"]
    rows = _read_rows(config, run, components, accelerator, suffix)
    images = {split: image_dataset(run, components, config, split, rows[split]) for split in rows}
    captions = [strip_suffix(text, suffix) for _, text in rows["train"]]
    mixed, count = images["train"], round(config.prior_share * len(captions))
    if count and suffix:
        mixed += prior_dataset(run, components, config, list(islice(cycle(captions), count)))
    elif count:
        log.warning(
            "prior_share is ignored: without a suffix the base's samples would have the captions of the images"
        )
    prompts = [append_suffix(prompt, suffix) for prompt in config.prompts]
    validation = rows["validation"]
    held_out_prompts = [validation[i * len(validation) // 4][1] for i in range(4)]
    return Datasets(
        suffix=suffix,
        train=images["train"],
        mixed=mixed,
        validation=images["validation"],
        captions=dict(validation),
        prompts=truncate_captions(prompts, suffix, components.tokenizer) or held_out_prompts,
        null_embedding=text_embeddings(run, components, config, "empty", [""]),
    )


def _read_rows(
    config: TrainConfig,
    run: Run,
    components: ModelComponents,
    accelerator: Accelerator,
    suffix: str,
) -> dict[str, list[tuple[str, str]]]:
    tokenizer = components.tokenizer
    rows, paths, cut = {}, [], 0
    check_suffix_length(suffix, tokenizer)
    for split in ("train", "validation"):
        names, texts = zip(*read_metadata(run.split_metadata(split)), strict=True)
        fitting = truncate_captions(texts, suffix, tokenizer)
        rows[split] = list(zip(names, fitting, strict=True))
        paths += [run.split(split) / name for name in names]
        cut += sum(a != b for a, b in zip(texts, fitting, strict=True))
    crop = Crop.from_config(config, components.step_px, augmented=False)
    if accelerator.is_main_process:
        for line in dataset_warnings(paths, crop, cut, tokenizer.model_max_length):
            log.warning(line)
    return rows


def _make_state(
    config: TrainConfig, components: ModelComponents, accelerator: Accelerator
) -> tuple[nn.Module, TrainState]:
    dtype = components.device.dtype
    # encoding had the GPU for itself until now
    components.denoiser.to(components.device.device)
    trained = make_trainable(components, config, dtype)
    weights = trained.trained_weights()
    optimizer = make_optimizer(weights, config)
    # before accelerate wraps the optimizer, whose step() it puts back as it found it
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_steps,
    )
    model, optimizer = accelerator.prepare(trained, optimizer)
    if config.torch_compile:
        components.denoiser.compile_repeated_blocks()
    ema = MovingAverage(weights, config.ema_decay, config.offload_ema) if config.use_ema else None
    state = TrainState(weights, optimizer, lr_scheduler, accelerator.scaler, ema)
    if config.optimizer_in_backward:
        state.in_backward = StepInBackward(
            optimizer.optimizer,
            weights.values(),
            config.max_grad_norm,
            accelerator.scaler,
            config.seed,
        )
    return model, state


def _forward_backward(
    config: TrainConfig, model: nn.Module, components: ModelComponents, accelerator: Accelerator
) -> Callable[..., Tensor]:
    run = partial(forward_backward, model, accelerator, components.objective, config.snr_gamma)
    if not components.device.captures or config.optimizer_in_backward:
        return run
    for weight in model.parameters():  # replays add to the same buffers, step after step
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    return Captured(run, "the training step")


def _follow_lr_schedule(config: TrainConfig, state: TrainState) -> None:
    lr_scheduler = state.lr_scheduler
    # not from the checkpoint, since `max_steps` may have changed
    factors = [factor_at(state.step) for factor_at in lr_scheduler.lr_lambdas]
    rates = [base * f for base, f in zip(lr_scheduler.base_lrs, factors, strict=True)]
    before = lr_scheduler.get_last_lr()
    if state.step and rates != before:
        log.warning(
            "max_steps is %d now: the learning rate goes on from step %d at %.3g, where it was %.3g",
            *(config.max_steps, state.step, rates[0], before[0]),
        )
    for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
