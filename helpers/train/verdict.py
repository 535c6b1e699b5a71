"""The verdict on a training, read off its validation loss: still learning, converged or overfitting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.config import TrainConfig
from helpers.core.errors import RunError

NOTICEABLE = 0.01  # of the base's loss; smaller changes are called flat
CHANCE = 0.02  # of the base's loss; what noise alone does to the gap of two curves

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Verdict:
    """The held-out loss before training (`base`), at its lowest (`best`) and at the end (`last`)."""

    base: float
    best: float
    best_step: int
    last: float
    rose: bool  # noticeably above its lowest: the best step's model is the better one
    words: str


def judge(curve: Curve, probe: Curve = ()) -> Verdict:
    """A verdict on (step, held-out loss) points in order; the first is step 0, the base model.

    overfitting     the smoothed loss has risen noticeably for two points, and its gap to `probe` with it
    still learning  its last third brought a noticeable fall
    flat            neither
    `probe` is the same loss on training images: a rise that they share is no overfitting. A curve alone
    is judged by its rise. Raises RunError where no point was a number.
    """
    if not curve:
        raise RunError("the held-out loss was never a number: lower learning_rate, and train again")
    losses, known = [loss for _, loss in curve], dict(probe)
    base, last = losses[0], losses[-1]
    gap = [loss - known[step] for step, loss in curve if step in known]
    before = curve[:-1] or curve
    late = (loss for step, loss in before if step >= curve[-1][0] * 2 / 3)
    two_thirds = next(late, before[-1][1])
    best_step, best = min(curve, key=lambda point: point[1])
    rose = _rose(losses, losses, NOTICEABLE * base)
    if rose and (len(gap) < len(losses) or _rose(gap, losses, CHANCE * base)):
        words = f"overfitting since step {best_of(curve)[0]}"  # whose weights the model has
        if best_step == curve[0][0]:
            words = "overfitting from the start: no step is better than the base model"
    elif rose:
        words = "flat: the loss rose on training images as well, so lower learning_rate"
    elif two_thirds - last > NOTICEABLE * base:
        words = "still learning: more steps would help"
    else:
        words = "flat: more steps would bring little"
    return Verdict(base, best, best_step, last, rose, words)


def _smooth(losses: Sequence[float]) -> list[float]:
    """Each point averaged with its neighbours, which count half."""
    wide = [losses[0], *losses, losses[-1]]
    return [(a + 2 * b + c) / 4 for a, b, c in zip(wide, wide[1:], wide[2:], strict=False)]


def _rose(values: Sequence[float], losses: Sequence[float], much: float) -> bool:
    """Whether the smoothed values lie by `much` above where the smoothed losses are lowest, for two points."""
    smooth, level = _smooth(values), _smooth(losses)
    lowest = level.index(min(level))
    return len(level) - 1 - lowest >= 2 and min(smooth[-2:]) > smooth[lowest] + much


def best_of(curve: Curve) -> tuple[int, float]:
    """The (step, loss) of the lowest held-out loss after step 0, or of step 0 while there is no other."""
    return min(curve[1:] or curve or [(0, math.inf)], key=lambda point: point[1])


def has_stopped_improving(curve: Curve, config: TrainConfig) -> bool:
    """Whether the validation loss has had no new minimum for `early_stopping_patience` measurements."""
    patience = config.early_stopping_patience
    return 0 < patience < len(curve) and len(curve) - 1 - curve.index(best_of(curve)) >= patience


def worst_first(names: Sequence[str], losses: Sequence[float]) -> list[dict[str, Any]]:
    """Images with their loss, the worst-fitting first; no number comes before all."""
    rows = [{"file_name": n, "loss": loss} for n, loss in zip(names, losses, strict=True)]
    return sorted(rows, key=lambda row: (math.isfinite(row["loss"]), -row["loss"]))
