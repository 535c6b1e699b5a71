"""One trial of a sweep: the ordinary training, measured, ended where it is hopeless, and told to the study."""

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
from helpers.figures.trials import TrialRow, best_of
from helpers.mirror.sync import delete_remote, restore, sync, sync_soon
from helpers.train import checkpoint
from helpers.train.sweep.search import measures_of, trial_config
from helpers.train.sweep.study import Claim, Database, Journal
from helpers.train.trainer import train

HOPELESS = 1.05  # times the base model's held-out loss, from a quarter of the budget on


@dataclass(frozen=True)
class Sweep:
    """A sweep under way: its settings, where its study lies, and the study."""

    config: TrainConfig
    run: Run
    place: Journal | Database
    study: optuna.Study

    def row(self, trial: FrozenTrial) -> TrialRow:
        """What came of a trial so far."""
        config, ended = trial_config(self.config, trial.params), trial.user_attrs
        images, measures = config.max_steps * config.effective_batch_size, measures_of(self.config)
        curve = [(round(images * p / measures), v) for p, v in trial.intermediate_values.items()]
        seconds = ended.get("seconds", 0.0)
        return TrialRow(
            trial.number,
            trial.state.name.lower(),
            trial.params,
            None if trial.value is None or not math.isfinite(trial.value) else trial.value,
            sorted((seen, loss) for seen, loss in curve if math.isfinite(loss)),
            ended.get("steps", 0),
            ended.get("steps", 0) * config.effective_batch_size,
            seconds,
            ended.get("cost_usd", 0.0),
            ended.get("reason", ""),
        )

    def is_best(self, value: float) -> bool:
        """Whether no ended trial's held-out loss is lower."""
        ended = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return all(value <= trial.value for trial in ended)

    def write_table(self) -> None:
        """Leave what is known of all trials; of the ended ones only the best keeps its model and checkpoints."""
        with locked(self.run.sweep_lock):
            rows = [self.row(trial) for trial in self.study.get_trials(deepcopy=False)]
            write_json(self.run.sweep_table, [asdict(row) for row in rows])
            best = best_of(rows)
            for row in rows:
                if row.state in ("complete", "pruned") and row is not best:
                    here = self.run.trial(row.number)
                    for folder in (here.checkpoints, here.model):
                        shutil.rmtree(folder, ignore_errors=True)
                    delete_remote(here)


def run_trial(sweep: Sweep, trial: FrozenTrial, claim: Claim) -> Iterator[str]:
    """Train a trial to its end, from wherever any machine has brought it, and tell the study."""
    config, here = trial_config(sweep.config, trial.params), sweep.run.trial(trial.number)
    restore(here)
    yield f"{sweep.row(trial).name}, {config.max_steps} steps{_came_to(here, trial)}"
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
    """Tell the study that a trial has ended, or why it was stopped; return it in words."""
    if reason:
        sweep.place.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        sweep.study.tell(trial.number, state=TrialState.PRUNED)
        return f"trial {trial.number} pruned: {reason}"
    value = _value(here)
    if sweep.is_best(value):
        sync(here)  # on Drive before any machine hears that it has ended
    sweep.study.tell(trial.number, value)
    return f"trial {trial.number} ended: held-out loss {value:.4f}"


def _came_to(here: TrialRun, trial: FrozenTrial) -> str:
    if step := checkpoint.latest_step(here):
        return f": goes on from step {step}"
    was_begun = trial.state != TrialState.WAITING
    return ": begins again, no checkpoint of it being here" if was_begun else ""


def _train(
    sweep: Sweep, config: TrainConfig, here: TrialRun, live: Trial, claim: Claim
) -> str | None:
    """Train, reporting every measurement; why it was stopped, or None where it came to its end."""
    _report(sweep, config, here, live)  # what a kill kept from being told
    if reason := _why_hopeless(sweep, here, live):
        return reason
    steps = train(config, here)
    try:
        with locked(sweep.run.cache_lock):  # two processes would compute and write it at once
            first = next(steps, None)
        for step in chain([first] if first else [], steps):
            claim.check()
            if step.held_out_loss is not None:
                if not math.isfinite(step.held_out_loss):
                    return f"its held-out loss was NaN or inf at step {step.step}"
                _report(sweep, config, here, live)
                if reason := _why_hopeless(sweep, here, live):
                    return reason
    except (DivergedError, OutOfMemoryError) as error:
        return str(error)
    finally:
        steps.close()
        clear_device_cache(garbage_collection=True)
    return None


def _report(sweep: Sweep, config: TrainConfig, here: TrialRun, live: Trial) -> None:
    """Tell the study each measurement that it does not know; their place is the share of the budget."""
    known = sweep.place.storage.get_trial(live._trial_id).intermediate_values
    measures = measures_of(sweep.config)
    for step, loss in _curve(here)[1:]:
        place = round(step * measures / config.max_steps)
        if place not in known:
            live.report(loss, place)
            known = known | {place: loss}


def _why_hopeless(sweep: Sweep, here: TrialRun, live: Trial) -> str | None:
    """Why a trial is to be stopped by its last measurement, if it is."""
    known = sweep.place.storage.get_trial(live._trial_id).intermediate_values
    place, measures = max(known, default=0), measures_of(sweep.config)
    curve = _curve(here)
    if not 0 < place < measures or not curve:
        return None
    if 4 * place >= measures and known[place] > HOPELESS * curve[0][1]:
        return f"its held-out loss {known[place]:.4f} is above the base model's {curve[0][1]:.4f}"
    if live.should_prune():
        return "its held-out loss is worse than half of the trials' at this point"
    return None


def _curve(here: TrialRun) -> list[tuple[int, float]]:
    """(step, held-out loss) so far, from step 0 on."""
    rows = read_log(here.train_log)
    return [(int(r["step"]), r["held_out_loss"]) for r in rows if "held_out_loss" in r]


def _value(here: TrialRun) -> float:
    """The held-out loss of the model that a trial left."""
    verdict = here.read_verdict()
    return dict(_curve(here)).get(verdict["exported_step"], verdict["last"])
