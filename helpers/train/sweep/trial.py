"""Train one trial of a sweep, report its validation loss to Optuna, and prune the trial if it is hopeless."""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain

import optuna
from accelerate.utils.memory import clear_device_cache
from optuna.trial import FrozenTrial, Trial, TrialState

from helpers.config import TrainConfig
from helpers.core.errors import DivergedError, OutOfMemoryError
from helpers.core.files import locked, write_json
from helpers.core.records import read_log
from helpers.core.run import Run, TrialRun
from helpers.figures.trials import TrialRow, best_trial
from helpers.mirror.sync import delete_remote, restore, sync, sync_soon
from helpers.train import checkpoint
from helpers.train.sweep.search import num_evaluations, trial_config
from helpers.train.sweep.study import Claim, Database, Journal
from helpers.train.trainer import train

MAX_LOSS_RATIO = 1.05  # to the base model's validation loss; above it a trial is pruned after a quarter of its steps


@dataclass(frozen=True)
class Sweep:
    """A running sweep: its settings, run, storage and Optuna study."""

    config: TrainConfig
    run: Run
    place: Journal | Database
    study: optuna.Study

    def row(self, trial: FrozenTrial) -> TrialRow:
        """Return a trial's results so far as a TrialRow."""
        config, ended = trial_config(self.config, trial.params), trial.user_attrs
        images, measures = (
            config.max_steps * config.effective_batch_size,
            num_evaluations(self.config),
        )
        curve = [(round(images * p / measures), v) for p, v in trial.intermediate_values.items()]
        return TrialRow(
            trial.number,
            trial.state.name.lower(),
            trial.params,
            None if trial.value is None or not math.isfinite(trial.value) else trial.value,
            sorted((seen, loss) for seen, loss in curve if math.isfinite(loss)),
            ended.get("steps", 0),
            ended.get("steps", 0) * config.effective_batch_size,
            ended.get("seconds", 0.0),
            ended.get("cost_usd", 0.0),
            ended.get("reason", ""),
        )

    def write_table(self) -> None:
        """Write the table of trials, and delete the checkpoints and models of ended trials except the best."""
        with locked(self.run.sweep_lock):
            rows = [self.row(trial) for trial in self.study.get_trials(deepcopy=False)]
            write_json(self.run.sweep_table, [asdict(row) for row in rows])
            best = best_trial(rows)
            for row in rows:
                if row.state in ("complete", "pruned") and row is not best:
                    here = self.run.trial(row.number)
                    for folder in (here.checkpoints, here.model):
                        shutil.rmtree(folder, ignore_errors=True)
                    delete_remote(here)


def run_trial(sweep: Sweep, trial: FrozenTrial, claim: Claim) -> Iterator[str]:
    """Train or resume a trial, yield lines of progress, and record the trial's end in the study."""
    config, here = trial_config(sweep.config, trial.params), sweep.run.trial(trial.number)
    restore(here)
    yield f"{sweep.row(trial).name}, {config.max_steps} steps{_resume_note(here, trial)}"
    if trial.state == TrialState.WAITING:
        sweep.place.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    sync_soon(sweep.run)
    live = Trial(sweep.study, trial._trial_id)
    began = time.perf_counter() - here.read_seconds().get("train", 0.0)
    reason = _train(sweep, config, here, live, claim)
    seconds = time.perf_counter() - began
    live.set_user_attr("seconds", seconds)
    live.set_user_attr("cost_usd", seconds / 3600 * sweep.config.usd_per_hour)
    live.set_user_attr("steps", max((int(r["step"]) for r in read_log(here.train_log)), default=0))
    claim.check()
    yield _tell(sweep, trial, here, reason)
    sweep.write_table()
    sync(here)
    sync_soon(sweep.run)


def _tell(sweep: Sweep, trial: FrozenTrial, here: TrialRun, reason: str | None) -> str:
    """Record in the study that a trial is complete, or pruned for `reason`; return a line of progress."""
    if reason:
        sweep.place.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        sweep.study.tell(trial.number, state=TrialState.PRUNED)
        return f"trial {trial.number} pruned: {reason}"
    verdict = here.read_verdict()
    value = dict(_curve(here)).get(verdict["exported_step"], verdict["last"])
    complete = sweep.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if all(value <= other.value for other in complete):
        sync(here)  # to Drive before any other machine sees it as complete
    sweep.study.tell(trial.number, value)
    return f"trial {trial.number} ended: validation loss {value:.4f}"


def _resume_note(here: TrialRun, trial: FrozenTrial) -> str:
    if step := checkpoint.latest_step(here):
        return f": goes on from step {step}"
    was_begun = trial.state != TrialState.WAITING
    return ": starts again, since it has no checkpoint here" if was_begun else ""


def _train(
    sweep: Sweep, config: TrainConfig, here: TrialRun, live: Trial, claim: Claim
) -> str | None:
    """Train a trial and report each evaluation; return the reason to prune the trial, or None if it is complete."""
    if reason := _report(sweep, config, here, live):  # evaluations before a kill
        return reason
    steps = train(config, here)
    try:
        with locked(sweep.run.cache_lock):  # or two processes compute and write the cache at once
            first = next(steps, None)
        for step in chain([first] if first else [], steps):
            claim.check()
            if step.held_out_loss is not None:
                if not math.isfinite(step.held_out_loss):
                    return f"its validation loss was NaN or inf at step {step.step}"
                if reason := _report(sweep, config, here, live):
                    return reason
    except (DivergedError, OutOfMemoryError) as error:
        return str(error)
    finally:
        steps.close()
        clear_device_cache(garbage_collection=True)
    return None


def _report(sweep: Sweep, config: TrainConfig, here: TrialRun, live: Trial) -> str | None:
    """Report new validation losses to the study, numbered from 1; return the reason to prune the trial, or None."""
    known = dict(sweep.place.storage.get_trial(live._trial_id).intermediate_values)
    curve, total = _curve(here), num_evaluations(sweep.config)
    for step, loss in curve[1:]:
        number = round(step * total / config.max_steps)
        if number not in known:
            live.report(loss, number)
            known[number] = loss
    last = max(known, default=0)
    if not 0 < last < total or not curve:
        return None
    if 4 * last >= total and known[last] > MAX_LOSS_RATIO * curve[0][1]:
        return f"its validation loss {known[last]:.4f} is above the base model's {curve[0][1]:.4f}"
    if live.should_prune():
        return "its validation loss is above the median of the trials at this point"
    return None


def _curve(here: TrialRun) -> list[tuple[int, float]]:
    """Return a trial's (step, validation loss) points so far, from step 0 on."""
    rows = read_log(here.train_log)
    return [(int(r["step"]), r["held_out_loss"]) for r in rows if "held_out_loss" in r]
