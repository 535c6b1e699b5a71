"""What is left after the last step: the model, the verdict, and the training images that fit worst."""

import logging
from dataclasses import asdict, replace

from helpers.config import TrainConfig, read_settings
from helpers.errors import RunError
from helpers.run import Run
from helpers.store import damage, folder_hash, write_json
from helpers.train import checkpoint
from helpers.train.export import save_model
from helpers.train.loss import FixedLoss
from helpers.train.prepare import NOT_LEARNT, Training
from helpers.train.verdict import Verdict, best_of, judge, worst_first

log = logging.getLogger(__name__)


def is_finished(config: TrainConfig, run: Run) -> bool:
    """Whether this very training has come as far as asked, and left its model."""
    try:
        verdict, done = run.read_verdict(), read_settings(TrainConfig, run.read_config("train"))
    except RunError:  # missing or damaged; both are written anew
        return False
    if damage(run.model):
        return False
    same_settings = replace(done, **{name: getattr(config, name) for name in NOT_LEARNT}) == config
    same_settings &= _images_per_step(done) == _images_per_step(config)
    same_data = verdict["dataset"] == folder_hash(run.dataset)
    stopped = verdict.get("stopped_early", False) and config.early_stopping_patience > 0
    return same_settings and same_data and (stopped or verdict["steps"] >= config.max_steps)


def _images_per_step(config: TrainConfig) -> int:
    return config.train_batch_size * config.gradient_accumulation_steps


def finish(training: Training) -> None:
    """Leave the verdict and the model: the best checkpoint's where the held-out loss rose, else the last."""
    run = training.run
    if training.accelerator.is_main_process:
        verdict = judge(training.log.held_out, training.log.probe)
        exported = _pick_weights(training, verdict)
        save_model(run, training.config, training.parts)
        _compare_images(training)
        came = {"steps": training.step, "stopped_early": training.stopped_early}
        came |= {"exported_step": exported, "skipped": training.log.skipped}
        belongs = training.belongs
        origin = {"dataset": belongs.dataset, "base_model": belongs.base_model}
        settings, curve = asdict(training.config), training.log.held_out
        origin["trained_with"] = {"suffix": training.suffix, "settings": settings, "curve": curve}
        write_json(run.verdict, vars(verdict) | came | origin)
        training.count_seconds()
    training.accelerator.wait_for_everyone()


def _pick_weights(training: Training, verdict: Verdict) -> int:
    """Put the weights to be exported into the model; the step that they are of."""
    run, best_step = training.run, best_of(training.log.held_out)[0]
    steps = [best_step] if verdict.rose else []
    for step in [*steps, training.step]:
        if (what := damage(run.checkpoint(step))) is None:
            checkpoint.load_weights(run.checkpoint(step), training.weights, average=True)
            return step
        log.warning("%s: its weights are not taken for the model", what)
    return training.step


def _compare_images(training: Training) -> None:
    """Keep the loss of each training image, the worst-fitting first."""
    some = training.images
    schedule, seed = training.parts.noise_scheduler, training.config.seed
    measure = FixedLoss(some, schedule, seed, 4 * len(some), True)
    losses = measure.of_images(training.accelerator.unwrap_model(training.unet), training.device)
    write_json(training.run.image_losses, worst_first(some.names, losses))
