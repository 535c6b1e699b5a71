"""Judge a training by its validation loss: still learning, converged or overfitting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.config import TrainConfig
from helpers.core.errors import RunError

MIN_CHANGE = 0.01  # relative to the base's loss; a smaller one is no change
MIN_GAP_RISE = 0.02  # relative to the base's loss; noise alone moves the gap of two curves by less

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Verdict:
    """The validation loss before training (`base`), at its lowest (`best`) and at the end (`last`)."""

    base: float
    best: float
    best_step: int
    last: float
    rose: bool  # above its lowest by MIN_CHANGE: the best step's model is the better one
    words: str


def judge(curve: Curve, train_eval_curve: Curve = ()) -> Verdict:
    """Judge a training by its (step, validation loss) points, which begin at step 0 (the base model).

    overfitting     the smoothed loss has risen for two points, and so has its gap to `train_eval_curve`
    still learning  the loss ended at its lowest (within MIN_CHANGE), below all of the first two thirds
    converged       neither
    `train_eval_curve` is the same loss on training images: a rise that both share is no overfitting. Without it, a
    rise is enough. Raises RunError if every point was NaN or inf.
    """
    if not curve:
        raise RunError(
            "the validation loss was always NaN or inf: lower learning_rate, and train again"
        )
    losses, train_losses = [loss for _, loss in curve], dict(train_eval_curve)
    base, last = losses[0], losses[-1]
    gap = [loss - train_losses[step] for step, loss in curve if step in train_losses]
    before = [loss for step, loss in curve if step < curve[-1][0] * 2 / 3]
    two_thirds = losses[: min(len(before) + 1, len(losses) - 1)] or losses
    best_step, best = min(curve, key=lambda point: point[1])
    rose = _rose(losses, losses, MIN_CHANGE * base)
    if rose and (len(gap) < len(losses) or _rose(gap, losses, MIN_GAP_RISE * base)):
        words = f"overfitting since step {best_point(curve)[0]}"  # whose weights the model has
        if best_step == curve[0][0]:
            words = "overfitting from the start: no step is better than the base model"
    elif rose:
        words = "converged: the loss rose on training images as well, so lower learning_rate"
    elif min(two_thirds) - last > MIN_CHANGE * base and last - best <= MIN_CHANGE * base:
        words = "still learning: more steps would help"
    else:
        words = "converged: more steps would bring little"
    return Verdict(base, best, best_step, last, rose, words)


def _smooth(losses: Sequence[float]) -> list[float]:
    padded = [losses[0], *losses, losses[-1]]
    return [(a + 2 * b + c) / 4 for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]


def _rose(values: Sequence[float], losses: Sequence[float], min_rise: float) -> bool:
    smooth, level = _smooth(values), _smooth(losses)
    lowest = level.index(min(level))
    return len(level) - 1 - lowest >= 2 and min(smooth[-2:]) > smooth[lowest] + min_rise


def best_point(curve: Curve) -> tuple[int, float]:
    """Return the (step, loss) point with the lowest validation loss. Step 0 counts only if it is the only point."""
    return min(curve[1:] or curve or [(0, math.inf)], key=lambda point: point[1])


def has_stopped_improving(curve: Curve, config: TrainConfig) -> bool:
    """Return True if the last `early_stopping_patience` measurements have not improved the validation loss."""
    patience = config.early_stopping_patience
    return 0 < patience < len(curve) and len(curve) - 1 - curve.index(best_point(curve)) >= patience


def rank_by_loss(names: Sequence[str], losses: Sequence[float]) -> list[dict[str, Any]]:
    """Return a {file_name, loss} row per image: NaN and inf first, then from the highest loss to the lowest."""
    rows = [{"file_name": n, "loss": loss} for n, loss in zip(names, losses, strict=True)]
    return sorted(rows, key=lambda row: (math.isfinite(row["loss"]), -row["loss"]))
