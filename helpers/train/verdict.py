"""Did it learn, and is it still learning? Read off the held-out loss."""

from dataclasses import dataclass

NOTICEABLE = 0.01  # of the base's loss; smaller changes are called flat


@dataclass(frozen=True)
class Verdict:
    """The held-out loss before training (`base`), at its lowest (`best`) and at the end (`last`)."""

    base: float
    best: float
    best_step: int
    last: float
    words: str


def judge(curve: list[tuple[int, float]]) -> Verdict:
    """A verdict on (step, held-out loss) points in order; the first is step 0, the base model.

    overfitting     the loss has risen noticeably above its lowest
    still learning  its last third brought a noticeable fall
    flat            neither
    """
    base, last = curve[0][1], curve[-1][1]
    best_step, best = min(curve, key=lambda point: point[1])
    two_thirds = next(loss for step, loss in curve if step >= curve[-1][0] * 2 / 3)
    if last > best + NOTICEABLE * base:
        words = f"overfitting since step {best_step}"
    elif two_thirds - last > NOTICEABLE * base:
        words = "still learning: more steps would help"
    else:
        words = "flat: more steps would bring little"
    return Verdict(base, best, best_step, last, words)
