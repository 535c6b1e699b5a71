"""What is left after the last step: the model, the verdict, and the training images that fit worst.

The verdict is that of model/ as it lies on the disk: it is read back, compared with what was trained, and measured.
"""

import logging
import math
from dataclasses import asdict, replace
from pathlib import Path

from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import nn

from helpers.config import TrainConfig, read_settings
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, replacing_folder, write_json
from helpers.core.run import Run
from helpers.train import checkpoint
from helpers.train.latents import token_ids
from helpers.train.loss import FixedLoss
from helpers.train.model import TextAndUNet
from helpers.train.prepare import NOT_LEARNT, Training
from helpers.train.save_model import (
    fine_tuned,
    lora_on_its_base,
    merge_lora,
    read_back,
    save_pipeline,
    write_card,
)
from helpers.train.verdict import Verdict, best_of, judge, worst_first

log = logging.getLogger(__name__)
ROUNDING = {"no": 1e-4, "bf16": 3e-2, "fp16": 3e-2}  # of a loss, by precision


def is_finished(config: TrainConfig, run: Run) -> bool:
    """Whether this very training has come as far as asked, and left its model."""
    try:
        verdict, done = run.read_verdict(), read_settings(TrainConfig, run.read_config("train"))
    except RunError:  # missing or damaged; both are written anew
        return False
    if find_corruption(run.model):
        return False
    same_settings = replace(done, **{name: getattr(config, name) for name in NOT_LEARNT}) == config
    same_settings &= _images_per_step(done) == _images_per_step(config)
    same_data = verdict["dataset"] == folder_hash(run.dataset)
    stopped = verdict.get("stopped_early", False) and config.early_stopping_patience > 0
    return same_settings and same_data and (stopped or verdict["steps"] >= config.max_steps)


def _images_per_step(config: TrainConfig) -> int:
    return config.train_batch_size * config.gradient_accumulation_steps


def finish(training: Training) -> None:
    """Leave the model and its verdict: the best checkpoint's where the held-out loss rose, else the last.

    Raises RunError where what lies on the disk is not what was trained; then nothing is replaced.
    """
    run = training.run
    if training.accelerator.is_main_process:
        verdict = judge(training.log.held_out, training.log.probe)
        exported = _pick_weights(training, verdict)
        loss, pipeline = _export(training)
        _compare_images(training, pipeline)
        measured = {"last": loss} if exported == training.step else {}
        measured |= {"best": loss} if exported == verdict.best_step else {}
        came = {"steps": training.step, "stopped_early": training.stopped_early}
        came |= {"exported_step": exported, "exported_loss": loss, "skipped": training.log.skipped}
        belongs = training.belongs
        origin = {"dataset": belongs.dataset, "base_model": belongs.base_model}
        settings, curve = asdict(training.config), training.log.held_out
        origin["trained_with"] = {"suffix": training.suffix, "settings": settings, "curve": curve}
        write_json(run.verdict, vars(verdict) | measured | came | origin)
        training.count_seconds()
    training.accelerator.wait_for_everyone()


def _pick_weights(training: Training, verdict: Verdict) -> int:
    """Put the weights to be exported into the model; the step that they are of."""
    run, best_step = training.run, best_of(training.log.held_out)[0]
    steps = [best_step] if verdict.rose else []
    for step in [*steps, training.step]:
        if (what := find_corruption(run.checkpoint(step))) is None:
            checkpoint.load_weights(run.checkpoint(step), training.weights, average=True)
            return step
        log.warning("%s: its weights are not taken for the model", what)
    return training.step


def _export(training: Training) -> tuple[float, StableDiffusionPipeline]:
    """Write model/, a LoRA's file first, each read back and measured: the held-out loss, and what was read back."""
    config, parts, run = training.config, training.parts, training.run
    in_memory = training.held_out(training.accelerator.unwrap_model(training.unet), training.device)
    if not math.isfinite(in_memory):
        raise RunError(
            f"the held-out loss of step {training.step} is NaN or inf, so no model is written: lower learning_rate, "
            f"and move {run.checkpoints} away to train anew"
        )
    training.release_steps()
    for module in (parts.unet, parts.text_encoder):
        module.to("cpu")  # its place is for what is read back
    with replacing_folder(run.model) as folder:
        if config.method == "lora":
            pipeline = lora_on_its_base(config, parts, folder / "lora")
            _measure(training, pipeline, in_memory, run.model / "lora")
            merge_lora(pipeline)
        else:
            pipeline = fine_tuned(config, parts)
        save_pipeline(config, parts, pipeline, folder)
        loaded = read_back(config, parts, folder)
        loss = _measure(training, loaded, in_memory, run.model)
        write_card(run, config, parts, folder)
    return loss, loaded


def _measure(
    training: Training, pipeline: StableDiffusionPipeline, in_memory: float, path: Path
) -> float:
    """The held-out loss of a pipeline that was read back, from the captions' words on.

    Raises RunError where it is not the loss that training's own modules have.
    """
    config = training.config
    texts = dict(training.rows["validation"])
    ids = token_ids(
        replace(training.parts, tokenizer=pipeline.tokenizer),
        [texts[name] for name in training.held_out.examples.names],
    )
    examples = replace(training.held_out.examples, texts=ids)
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    held_out = FixedLoss(examples, schedule, config.seed, len(training.held_out.index))
    loss = held_out(TextAndUNet(pipeline.unet, pipeline.text_encoder), training.device)
    if not math.isclose(loss, in_memory, rel_tol=ROUNDING[training.device.precision]):
        raise RunError(
            f"{path} has a held-out loss of {loss:.4f} where training measured {in_memory:.4f}, so nothing was "
            "replaced: run 04_train again, and report it if it stays"
        )
    return loss


def _compare_images(training: Training, pipeline: StableDiffusionPipeline) -> None:
    """Keep the loss of each training image, the worst-fitting first."""
    some = training.images
    schedule, seed = training.parts.noise_scheduler, training.config.seed
    measure = FixedLoss(some, schedule, seed, 4 * len(some), True)
    trained: nn.Module = pipeline.unet
    if training.config.train_text_encoder:
        trained = TextAndUNet(pipeline.unet, pipeline.text_encoder)
    write_json(
        training.run.image_losses,
        worst_first(some.names, measure.of_images(trained, training.device)),
    )
