"""Plan the settings of every trial of a sweep, deterministically, before the first trial runs.

Trials differ in the swept settings alone. All see the same number of images, in the same order and with the same
noise, and their validation losses are measured on the same images. (With aspect-ratio buckets the micro-batch, which
`effective_batch` changes, decides which images come together.)
"""

import itertools
import math
import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import QMCSampler

from helpers.config import TrainConfig, from_text
from helpers.config.fields import names_like
from helpers.config.stages import RESUMABLE
from helpers.core.errors import RunError

BATCH = "effective_batch"  # of train_batch_size x gradient_accumulation_steps; only in sweeps
FIXED = {  # settings that would make trials incomparable, with the reason
    "base_model": "losses of different base models cannot be compared",
    "vae": "losses of different latents cannot be compared",
    "seed": "it sets the order of images and the noise, which are the same in every trial",
    "resolution_px": "losses at different sizes cannot be compared",
    "aspect_ratio_buckets": "losses on different crops cannot be compared",
    "mixed_precision": "a process can have only one",
    "validation_pairs": "losses on different images and noise cannot be compared",
    "max_steps": "each trial sees as many images as the run's own settings say",
}
BATCH_PARTS = ("train_batch_size", "gradient_accumulation_steps")
DEPENDS_ON = {  # settings that change nothing unless another one has this value
    "rank": ("method", "lora"),
    "lora_alpha": ("method", "lora"),
    "lora_targets": ("method", "lora"),
    "text_encoder_lr": ("train_text_encoder", True),
    "ema_decay": ("use_ema", True),
}
MIN_EVALUATIONS = 4  # per trial, so that a hopeless one is pruned before its half


def parse_dimension(name: str, asked: Any) -> BaseDistribution:
    """Parse a swept setting's range `"1e-5..1e-3"` or choices `[4, 8, 16]` into an Optuna distribution.

    Raises RunError for anything else. A range over a factor of ten or more is sampled by its logarithm.
    """
    known = {f.name for f in fields(TrainConfig)} - RESUMABLE - set(FIXED) | {BATCH, *BATCH_PARTS}
    if name not in known:
        why = FIXED.get(name) or names_like(name, known)
        raise RunError(f"sweep has {name!r}, which cannot be swept: {why}")
    if isinstance(asked, list | tuple) and asked:
        return CategoricalDistribution(_choices(name, asked))
    low, dots, high = str(asked).partition("..")
    kind = float if isinstance(getattr(TrainConfig, name, 1), float) else int
    try:
        ends = kind(low), kind(high)
    except ValueError:
        ends = (0, 0)
    if not dots or not ends[0] < ends[1] or (name == BATCH and ends[0] < 1):
        raise RunError(
            f"sweep has {name}: {asked!r}: give a range as in '1e-5..1e-3', or a list of values"
        )
    by_log = ends[0] > 0 and ends[1] >= 10 * ends[0]
    distribution = FloatDistribution if kind is float else IntDistribution
    return distribution(*ends, log=by_log)


def plan_trials(config: TrainConfig) -> list[dict[str, Any]]:
    """Return each trial's swept settings: shuffled combinations of choices, or Sobol points if a setting has a range.

    The first trials stay the same when more are asked for. Raises RunError for a setting or value that training would
    refuse.
    """
    if BATCH in config.sweep and config.sweep.keys() & set(BATCH_PARTS):
        raise RunError(f"sweep has {BATCH!r} and one of its two factors: leave one of them out")
    dimensions = {name: parse_dimension(name, asked) for name, asked in config.sweep.items()}
    lists = [d.choices for d in dimensions.values() if isinstance(d, CategoricalDistribution)]
    if len(lists) == len(dimensions):
        # not Optuna's BruteForceSampler: its order differs, so a sweep that an older version began would not go on
        planned = [dict(zip(dimensions, v, strict=True)) for v in itertools.product(*lists)]
        random.Random(config.seed).shuffle(planned)
        planned = planned[: config.sweep_trials]
    else:
        planned = _sobol_points(dimensions, config)
    for params in planned:
        trial_config(config, params)
    return planned


def _choices(name: str, asked: Sequence[Any]) -> tuple[Any, ...]:
    kinds = (int,) if name == BATCH else (bool, int, float, str)
    for value in asked:
        if type(value) not in kinds or (name == BATCH and value < 1):
            raise RunError(f"sweep has {name}: {value!r} among its values, which it cannot have")
    return tuple(dict.fromkeys(asked))


def unused_settings(config: TrainConfig) -> list[str]:
    """Return a warning for each swept setting that has no effect because of the other settings."""
    return [
        f"warning: {name} changes nothing unless {needed} is {value!r}"
        for name, (needed, value) in DEPENDS_ON.items()
        if name in config.sweep and needed not in config.sweep and getattr(config, needed) != value
    ]


def _sobol_points(
    dimensions: dict[str, BaseDistribution], config: TrainConfig
) -> list[dict[str, Any]]:
    # a grid is worse (Bergstra and Bengio 2012, jmlr.org/papers/v13/bergstra12a.html)
    with warnings.catch_warnings(category=ExperimentalWarning, action="ignore"):
        study = optuna.create_study(sampler=QMCSampler(scramble=True, seed=config.seed))
    # without a trial to read the dimensions from, the sampler draws the first point at random
    first = {n: d.choices[0] if hasattr(d, "choices") else d.low for n, d in dimensions.items()}
    study.add_trial(optuna.create_trial(params=first, distributions=dimensions, value=0.0))
    points: list[dict[str, Any]] = []
    for _ in range(64 * config.sweep_trials):  # a range of integers may give a point twice
        asked = study.ask(dimensions).params
        point = {name: _round(dimension, asked[name]) for name, dimension in dimensions.items()}
        if point not in points:
            points.append(point)
        if len(points) == config.sweep_trials:
            break
    return points


def _round(dimension: BaseDistribution, value: Any) -> Any:
    if not isinstance(dimension, FloatDistribution):
        return value
    low, high = dimension.low, dimension.high
    # about three significant digits, so that a user can type it
    digits = 2 - math.floor(math.log10(value if dimension.log else high - low))
    return min(max(round(value, digits), low), high)


def trial_config(config: TrainConfig, params: dict[str, Any]) -> TrainConfig:
    """Return a trial's full settings. The number of steps is scaled so that all trials see equally many images.

    All trials are evaluated equally often. Raises RunError for a value that training would refuse.
    """
    values = dict(params)
    if BATCH in values:  # the largest micro-batch up to train_batch_size
        batch = values.pop(BATCH)
        sizes = range(1, min(batch, config.train_batch_size) + 1)
        size = max(size for size in sizes if batch % size == 0)
        values |= {"train_batch_size": size, "gradient_accumulation_steps": batch // size}
    trial = replace(config, sweep={}, sweep_storage="", keep_checkpoints=1, **values)
    scale = config.effective_batch_size / trial.effective_batch_size
    steps = max(1, round(config.max_steps * scale))
    scaled = {"validate_every_steps": max(1, steps // num_evaluations(config))}
    for name in ("save_every_steps", "preview_every_steps"):
        scaled[name] = max(1, round(getattr(config, name) * scale))
    if "lr_warmup_steps" not in params:
        scaled["lr_warmup_steps"] = round(config.lr_warmup_steps * scale)
    return replace(trial, max_steps=steps, **scaled)


def num_evaluations(config: TrainConfig) -> int:
    """Return how many times a trial's validation loss is measured after step 0."""
    return max(MIN_EVALUATIONS, config.max_steps // config.validate_every_steps)


def is_dimension(name: str, text: str) -> bool:
    """Return True if a setting is to be swept: a range `1e-5..1e-3`, choices `4,8,16`, or any `effective_batch`."""
    is_range = re.fullmatch(r"[-+.\w]+\.\.[-+.\w]+", text) is not None
    return name == BATCH or is_range or ("," in text and name != "prompts")


def read_dimension(name: str, text: str) -> Any:
    """Parse a swept command-line value: a range stays text, `4,8,16` becomes a list. Raises RunError if invalid."""
    if ".." in text:
        return text
    field = "train_batch_size" if name == BATCH else name
    return [from_text(TrainConfig, field, part.strip()) for part in text.split(",")]
