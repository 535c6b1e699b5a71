"""Finish a training: export and reload the model, judge the training, and rank the training images by loss.

The verdict is on model/ as it lies on the disk: read back, compared with the trained weights, and evaluated.
"""

import logging
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from helpers.config import TrainConfig, read_settings
from helpers.config.stages import RESUMABLE
from helpers.core.errors import RunError
from helpers.core.files import (
    GB,
    MANIFEST,
    find_corruption,
    folder_bytes,
    folder_hash,
    replacing_folder,
    write_json,
)
from helpers.core.records import read_log
from helpers.core.run import Run
from helpers.host import here
from helpers.models.capture import Captured
from helpers.models.families import Components
from helpers.train import checkpoint, save_model
from helpers.train.gpus import whole
from helpers.train.latents import token_ids
from helpers.train.model import Denoiser, unload
from helpers.train.optim import TrainState
from helpers.train.prepare import Training
from helpers.train.validation_loss import ValidationLoss
from helpers.train.verdict import Verdict, best_point, has_stopped_improving, judge, rank_by_loss

log = logging.getLogger(__name__)
ROUNDING = {"no": 1e-4, "bf16": 3e-2, "fp16": 3e-2}  # relative, of a loss, by precision


def is_finished(config: TrainConfig, run: Run) -> bool:
    """Return True if a training with these settings and data has ended and exported its model."""
    try:
        verdict, done = run.read_verdict(), read_settings(TrainConfig, run.read_config("train"))
    except RunError:  # missing or damaged; both are written anew
        return False
    if find_corruption(run.model):
        return False
    same_settings = replace(done, **{name: getattr(config, name) for name in RESUMABLE}) == config
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # that a launcher started
    images_per_step = verdict.get("images_per_step", done.effective_batch_size * processes)
    same_settings &= images_per_step == config.effective_batch_size * processes
    same_data = verdict["dataset"] == folder_hash(run.dataset)
    stopped = verdict.get("stopped_early", False) and _is_out_of_patience(verdict, config)
    return same_settings and same_data and (stopped or verdict["steps"] >= config.max_steps)


def _is_out_of_patience(verdict: dict[str, Any], config: TrainConfig) -> bool:
    if (curve := verdict.get("trained_with", {}).get("curve")) is None:  # of an older version
        return config.early_stopping_patience > 0
    return has_stopped_improving([(step, loss) for step, loss in curve], config)


def finish(training: Training, state: TrainState) -> None:
    """Export the last checkpoint, or the best one if the validation loss rose, and write verdict.json.

    Raises RunError if the exported files differ from the trained weights; then nothing is replaced.
    """
    run, log = training.run, training.log
    if training.accelerator.is_main_process:
        verdict = judge(log.val_curve, log.train_eval_curve)
        exported_step = _load_weights_to_export(training, state, verdict)
        loss, pipeline = _export(training, state)
        _rank_training_images(training, pipeline)
        measured = {"last": loss} if exported_step == state.step else {}
        measured |= {"best": loss} if exported_step == verdict.best_step else {}
        outcome = {
            "steps": state.step,
            "stopped_early": state.stopped_early,
            "exported_step": exported_step,
            "exported_loss": loss,
            "skipped": log.skipped,
            "images_per_step": training.data.images_per_step,
            "dataset": training.signature.dataset,
            "base_model": training.signature.base_model,
            "trained_with": {
                "suffix": training.datasets.suffix,
                "settings": asdict(whole(training.config, training.accelerator.num_processes)),
                "curve": log.val_curve,
            },
        }
        write_json(run.verdict, vars(verdict) | measured | outcome)
        log.count_seconds()
    training.accelerator.wait_for_everyone()


def _load_weights_to_export(training: Training, state: TrainState, verdict: Verdict) -> int:
    run, best_step = training.run, best_point(training.log.val_curve)[0]
    for step in [best_step, state.step] if verdict.rose else [state.step]:
        if (what := find_corruption(run.checkpoint(step))) is None:
            checkpoint.load_weights(run.checkpoint(step), state.weights, use_ema=True)
            return step
        log.warning("%s: its weights are not taken for the model", what)
    return state.step


def _export(training: Training, state: TrainState) -> tuple[float, DiffusionPipeline]:
    config, components, run = training.config, training.components, training.run
    trained = training.accelerator.unwrap_model(training.model)
    in_memory = training.val_loss(trained, training.device)
    if not math.isfinite(in_memory):
        raise RunError(
            f"the validation loss of step {state.step} is NaN or inf, so no model is written: lower learning_rate, "
            f"and move {run.checkpoints} away to train anew"
        )
    _free_step_memory(training, state)
    with replacing_folder(run.model) as folder:
        if config.method == "lora":
            pipeline = save_model.export_lora(config, components, folder / "lora")
            _evaluate(training, pipeline, in_memory, run.model / "lora")
            pipeline.fuse_lora()  # merged into the base model's weights
            pipeline.unload_lora_weights()
        else:
            pipeline = save_model.finetuned_pipeline(config, components)
        save_model.save_pipeline(config, components, pipeline, folder)
        del pipeline  # a GPU holds one model at a time
        loaded = save_model.read_back(config, components, folder)
        loss = _evaluate(training, loaded, in_memory, run.model)
        save_model.write_card(run, config, components, folder)
    return loss, loaded


def _free_step_memory(training: Training, state: TrainState) -> None:
    state.optimizer.optimizer.zero_grad(set_to_none=True)
    if isinstance(training.forward_backward, Captured):
        training.forward_backward.release()
    unload(training.components, training.config)


def _evaluate(
    training: Training, pipeline: DiffusionPipeline, in_memory: float, path: Path
) -> float:
    config, val_loss = training.config, training.val_loss
    loaded = Components.of(training.components.family, pipeline)
    texts = [training.datasets.captions[name] for name in val_loss.dataset.names]
    dataset = replace(val_loss.dataset, texts=token_ids(loaded, texts))
    schedule = loaded.family.SCHEDULER.from_config(pipeline.scheduler.config)
    objective = loaded.family.objective(schedule)
    measure = ValidationLoss(dataset, objective, config.seed, len(val_loss.images))
    loss = measure(Denoiser.of(loaded).to(training.device.device), training.device)
    if not math.isclose(loss, in_memory, rel_tol=ROUNDING[training.device.precision]):
        raise RunError(
            f"{path} has a validation loss of {loss:.4f} where training measured {in_memory:.4f}, so nothing was "
            "replaced: run 04_train again, and report it if it stays"
        )
    return loss


def _rank_training_images(training: Training, pipeline: DiffusionPipeline) -> None:
    dataset, seed = training.datasets.train, training.config.seed
    objective, samples = training.components.objective, 4 * len(dataset)
    measure = ValidationLoss(dataset, objective, seed, samples, same_timesteps=True)
    loaded = Components.of(training.components.family, pipeline)
    trained = Denoiser.of(loaded, with_text=training.config.train_text_encoder)
    losses = measure.per_image(trained, training.device)
    write_json(training.run.image_losses, rank_by_loss(dataset.names, losses))


def verify_model(run: Run) -> str:
    """Verify model/ and return a one-line result of the training. Raises RunError if a file is missing or changed."""
    verdict = run.read_verdict()
    if what := find_corruption(run.model):
        raise RunError(f"{what}: run 04_train again")
    change = verdict["last"] / verdict["base"] - 1
    return (
        f"{run.model} is complete: validation loss {verdict['base']:.4f} -> {verdict['last']:.4f} "
        f"({change:+.0%}); {verdict['words']}{_remarks(run, verdict)}{_unfinished(run, verdict)}"
        f"{_offer_light_lora(run, verdict)}"
    )


def _offer_light_lora(run: Run, verdict: dict[str, Any]) -> str:
    settings = verdict.get("trained_with", {}).get("settings") or run.read_config("train")
    needed, free = folder_bytes(run.model), here.free_bytes()  # export/ holds the model again
    if settings["method"] != "full" or free > needed:
        return ""
    return (
        f"; {here.MIRROR.name} has {free / GB:.1f} GB left, and 05's one-file model takes {needed / GB:.1f}: "
        "more = {'lora_rank': 32, 'one_file': 'no'} there writes a LoRA of the change instead, a few "
        "percent of that"
    )


def _unfinished(run: Run, verdict: dict[str, Any]) -> str:
    step = max((int(row["step"]) for row in read_log(run.train_log)), default=verdict["steps"])
    asked = run.read_config("train")["max_steps"]
    has_ended = asked <= verdict["steps"] or verdict.get("stopped_early", False)
    if step == verdict["steps"] and has_ended:
        return ""
    saved = checkpoint.latest_step(run)
    kept = "which is kept" if saved == step else f"kept up to step {saved}"
    return (
        f"; but this is the model of a training that ended at step {verdict['steps']}, and the one under way, of "
        f"{asked} steps, is at step {step}, {kept if saved else 'with no checkpoint yet'}: "
        "run the cell under Train again, and it goes on"
    )


def _remarks(run: Run, verdict: dict[str, Any]) -> str:
    remarks = ""
    if not (run.dataset / MANIFEST).is_file():
        remarks += "; dataset/ is gone since, and 03_dataset makes it again"
    elif folder_hash(run.dataset) != verdict["dataset"]:
        remarks += "; dataset/ has changed since, and 04_train trains on it when it is run again"
    if verdict.get("exported_step", verdict["steps"]) != verdict["steps"]:
        loss = verdict.get("exported_loss")  # older versions have none
        at = f", with {loss:.4f}" if loss is not None else ""
        remarks += f"; the model is step {verdict['exported_step']}'s{at}"
    if verdict.get("skipped"):
        remarks += (
            f"; {verdict['skipped']} steps were skipped, their loss or gradient being NaN or inf"
        )
    return remarks
