"""Measure the distance between two sets of pictures: the maximum mean discrepancy (MMD) of their features.

With the colour and texture features of style.py it is the style distance; with those of a named image model it is KID
(kernel inception distance, Binkowski et al. 2018, arXiv:1801.01401). FID is biased at a few hundred pictures, as that
paper shows, and is not measured.
"""

from typing import Any

import numpy as np

from helpers.inference.judge.encoders import BUILT_IN, Encoder, make_builtin_encoder
from helpers.inference.judge.groups import Interval, Pictures

NAME = "style distance"
COMPARED_WITH_ART = {"floor": "train", "tuned": "tuned", "ceiling": "base"}


def measure(pictures: Pictures) -> dict[str, Any]:
    """Return the style distances from held-out art to training images (floor), tuned and base samples (ceiling)."""
    encode = make_builtin_encoder(pictures["train"])
    return {"encoder": BUILT_IN} | measure_distances(pictures, encode)


def describe(found: dict[str, Any]) -> tuple[str, str]:
    """Return two texts for the report: the style distance of tuned samples, and how to read the value."""
    tuned = found["tuned"]
    return (
        f"{tuned['value']:.2f} ({tuned['low']:.2f} to {tuned['high']:.2f})",
        f"to held-out art, smaller is nearer: training images have {found['floor']['value']:.2f}, the base "
        f"{found['ceiling']['value']:.2f}; MMD on colour and texture features",
    )


def measure_distances(pictures: Pictures, encode: Encoder) -> dict[str, Any]:
    """Return the MMDs from held-out art to training images (floor), tuned and base samples (ceiling)."""
    if reason := pictures.why_too_few(min_count=3):
        return {"left_out": f"{reason}; it takes three of each"}
    art = encode(pictures["held_out"])
    return {k: vars(mmd(encode(pictures[g]), art)) for k, g in COMPARED_WITH_ART.items()}


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the KID kernel (x·y / D + 1)³ of features (N, D) and (M, D), with shape (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def mmd(x: np.ndarray, y: np.ndarray, draws: int = 1000) -> Interval:
    """Return the unbiased squared MMD of features (N, D) and (M, D), with a bootstrap interval.

    Gretton et al. 2012, eq. 3. Pairs of a picture with itself are left out, also where a draw has the picture twice.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    kernels = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    shares = [np.full(len(side), 1 / len(side)) for side in (x, y)]
    rng = np.random.default_rng(0)
    drawn = [
        _mmd(*kernels, *(rng.multinomial(len(s), s).astype(float) for s in shares))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Interval(_mmd(*kernels, np.ones(len(x)), np.ones(len(y))), float(low), float(high))


def _mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    """Return the squared MMD from three kernel matrices, with pictures weighted by counts `u` (N,) and `v` (M,)."""
    across = (u @ xy @ v) / (u.sum() * v.sum())
    return float(_mean_of_pairs(xx, u) + _mean_of_pairs(yy, v) - 2 * across)


def _mean_of_pairs(kernel: np.ndarray, count: np.ndarray) -> float:
    """Return the mean kernel value over pairs of different pictures, weighted by `count`; NaN without a pair."""
    pairs = np.outer(count, count)
    np.fill_diagonal(pairs, 0)
    return float((pairs * kernel).sum() / pairs.sum()) if pairs.any() else float("nan")
