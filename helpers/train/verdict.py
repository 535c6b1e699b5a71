"""Did it learn, and is it still learning? Read off the held-out loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from helpers.errors import RunError

NOTICEABLE = 0.01  # of the base's loss; smaller changes are called flat


@dataclass(frozen=True)
class Verdict:
    """The held-out loss before training (`base`), at its lowest (`best`) and at the end (`last`)."""

    base: float
    best: float
    best_step: int
    last: float
    words: str


def judge(curve: Sequence[tuple[int, float]]) -> Verdict:
    """A verdict on (step, held-out loss) points in order; the first is step 0, the base model.

    overfitting     the loss has risen noticeably above its lowest, for two points: one may be chance
    still learning  its last third brought a noticeable fall
    flat            neither
    Raises RunError where no point was a number.
    """
    if not curve:
        raise RunError("the held-out loss was never a number: lower learning_rate, and train again")
    base, last = curve[0][1], curve[-1][1]
    best_step, best = min(curve, key=lambda point: point[1])
    two_thirds = next(loss for step, loss in curve if step >= curve[-1][0] * 2 / 3)
    since = [loss for step, loss in curve if step > best_step][-2:]
    if len(since) == 2 and min(since) > best + NOTICEABLE * base:
        words = f"overfitting since step {best_step}"
    elif two_thirds - last > NOTICEABLE * base:
        words = "still learning: more steps would help"
    else:
        words = "flat: more steps would bring little"
    return Verdict(base, best, best_step, last, words)


def best_of(curve: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The (step, loss) of the lowest held-out loss after step 0, or of step 0 while there is no other."""
    return min(curve[1:] or curve or [(0, math.inf)], key=lambda point: point[1])


def worst_first(names: Sequence[str], losses: Sequence[float]) -> list[dict[str, Any]]:
    """Images with their loss, the worst-fitting first; no number comes before all."""
    rows = [{"file_name": n, "loss": loss} for n, loss in zip(names, losses, strict=True)]
    return sorted(rows, key=lambda row: (math.isfinite(row["loss"]), -row["loss"]))
