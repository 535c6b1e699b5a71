"""What a sweep tries: the list of its trials, known before the first one runs and the same however often it is asked.

A trial differs from the run's own settings in what is swept alone. All else is alike: the images' order, the noise,
the held-out measure, and the budget, which is counted in images seen.
"""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import qmc

from helpers.config import TrainConfig, from_text
from helpers.core.errors import RunError

BATCH = "effective_batch"  # of train_batch_size and gradient_accumulation_steps, for a sweep alone
ALIKE = {  # what would make two trials no longer comparable
    "base_model": "the held-out loss of another base is another measure",
    "seed": "it sets the order and the noise, which are the same in every trial",
    "resolution_px": "the held-out loss at another size is another measure",
    "aspect_ratio_buckets": "the held-out loss at another framing is another measure",
    "mixed_precision": "a process has one",
    "validation_pairs": "the held-out loss of other pairs is another measure",
    "max_steps": "each trial sees as many images as the run's own settings do",
}
BATCH_PARTS = ("train_batch_size", "gradient_accumulation_steps")
UNUSED = {  # what changes nothing unless another setting says so
    "rank": ("method", "lora"),
    "lora_alpha": ("method", "lora"),
    "lora_targets": ("method", "lora"),
    "text_encoder_lr": ("train_text_encoder", True),
    "ema_decay": ("use_ema", True),
}
LEAST_MEASURES = 4  # of a trial, so that a hopeless one ends before its half


def parse_dimension(name: str, asked: Any) -> BaseDistribution:
    """A setting's range, `"1e-5..1e-3"`, or its choices, `[4, 8, 16]`. Raises RunError for what is neither.

    A range over a factor of ten or more is drawn by its logarithm.
    """
    known = {f.name for f in fields(TrainConfig) if not f.metadata.get("resumable")} - set(ALIKE)
    known |= {BATCH, *BATCH_PARTS}
    if name not in known:
        why = ALIKE.get(name, f"a sweep can try {', '.join(sorted(known))}")
        raise RunError(f"sweep has {name!r}, which is not to be swept: {why}")
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
    return (FloatDistribution if kind is float else IntDistribution)(*ends, log=by_log)


def plan_trials(config: TrainConfig) -> list[dict[str, Any]]:
    """The swept settings of each trial: every combination where lists have few enough, else spread evenly.

    Spread by a scrambled Sobol sequence (Bergstra and Bengio 2012 on why not by a grid), whose first trials stay
    the same where more are asked for. Raises RunError for a setting or value that training would refuse.
    """
    if BATCH in config.sweep and config.sweep.keys() & set(BATCH_PARTS):
        raise RunError(f"sweep has {BATCH!r} and a part of it: leave one of them out")
    dimensions = {name: parse_dimension(name, asked) for name, asked in config.sweep.items()}
    lists = [d.choices for d in dimensions.values() if isinstance(d, CategoricalDistribution)]
    if len(lists) == len(dimensions):
        every = [dict(zip(dimensions, v, strict=True)) for v in itertools.product(*lists)]
        random.Random(config.seed).shuffle(every)
        planned = every[: config.sweep_trials]
    else:
        planned = _spread(dimensions, config)
    for params in planned:
        trial_config(config, params)
    return planned


def _choices(name: str, asked: Sequence[Any]) -> tuple[Any, ...]:
    """The values of a list, each once. Raises RunError for one that no setting can be."""
    kinds = (int,) if name == BATCH else (bool, int, float, str)
    for value in asked:
        if type(value) not in kinds or (name == BATCH and value < 1):
            raise RunError(f"sweep has {name}: {value!r} among its values, which is none for it")
    return tuple(dict.fromkeys(asked))


def warnings_of(config: TrainConfig) -> list[str]:
    """A line for each setting that is swept and changes nothing."""
    return [
        f"mind: {name} changes nothing unless {needed} is {value!r}"
        for name, (needed, value) in UNUSED.items()
        if name in config.sweep and needed not in config.sweep and getattr(config, needed) != value
    ]


def _spread(dimensions: dict[str, BaseDistribution], config: TrainConfig) -> list[dict[str, Any]]:
    """Trials evenly over all dimensions, each once."""
    sobol = qmc.Sobol(len(dimensions), seed=config.seed)
    found: list[dict[str, Any]] = []
    for _ in range(64 * config.sweep_trials):  # whole numbers may come twice
        point = sobol.random()[0]
        pairs = zip(dimensions.items(), point, strict=True)
        params = {name: _value(dimension, float(u)) for (name, dimension), u in pairs}
        if params not in found:
            found.append(params)
        if len(found) == config.sweep_trials:
            break
    return found


def _value(dimension: BaseDistribution, u: float) -> Any:
    """The value at `u`, 0 to 1, of a dimension; numbers as short as can be read and typed again."""
    if isinstance(dimension, CategoricalDistribution):
        return dimension.choices[int(u * len(dimension.choices))]
    low, high = dimension.low, dimension.high
    whole = isinstance(dimension, IntDistribution)
    if whole:
        low, high = low - 0.5, high + 0.5
    value = low * (high / low) ** u if dimension.log else low + (high - low) * u
    digits = 2 - math.floor(math.log10(value if dimension.log else high - low))
    value = round(value) if whole else round(value, digits)
    return min(max(value, dimension.low), dimension.high)


def trial_config(config: TrainConfig, params: dict[str, Any]) -> TrainConfig:
    """A trial's settings: as many images as the run's own, measured as often; steps follow the effective batch.

    Raises RunError for a value that training would refuse.
    """
    values = dict(params)
    if BATCH in values:
        values |= _split_batch(values.pop(BATCH), config.train_batch_size)
    trial = replace(config, sweep={}, sweep_storage="", keep_checkpoints=1, **values)
    scale = config.effective_batch_size / trial.effective_batch_size
    steps = max(1, round(config.max_steps * scale))
    every = {
        name: max(1, round(getattr(config, name) * scale))
        for name in ("save_every_steps", "preview_every_steps")
    }
    if "lr_warmup_steps" not in params:
        every["lr_warmup_steps"] = round(config.lr_warmup_steps * scale)
    every["validate_every_steps"] = max(1, steps // measures_of(config))
    return replace(trial, max_steps=steps, **every)


def _split_batch(batch: int, most: int) -> dict[str, int]:
    """An effective batch as the largest micro-batch of at most `most`, and how often it is accumulated."""
    size = max(size for size in range(1, min(batch, most) + 1) if batch % size == 0)
    return {"train_batch_size": size, "gradient_accumulation_steps": batch // size}


def measures_of(config: TrainConfig) -> int:
    """How often a trial's held-out loss is measured after step 0."""
    return max(LEAST_MEASURES, config.max_steps // config.validate_every_steps)


def is_dimension(name: str, text: str) -> bool:
    """Whether what was typed on a command line is to be tried: a range, or choices."""
    is_range = re.fullmatch(r"[-+.\w]+\.\.[-+.\w]+", text) is not None
    return name == BATCH or is_range or ("," in text and name != "prompts")


def read_dimension(name: str, text: str) -> Any:
    """`1e-5..1e-3` as it is, and `4,8,16` as a list. Raises RunError for a name or value that is none."""
    if ".." in text:
        return text
    field = "train_batch_size" if name == BATCH else name
    return [from_text(TrainConfig, field, part.strip()) for part in text.split(",")]
