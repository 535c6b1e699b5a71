"""How far two sets of pictures are apart, from their features: the kernel distance KID and its interval.

FID is biased at a few hundred pictures and is not measured (Binkowski et al. 2018, arXiv:1801.01401).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y / D + 1)³ of (N, D) and (M, D) features, (N, M): the kernel of KID."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy of (N, D) and (M, D) features (Gretton et al. 2012, eq. 3)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    return _mmd(*_kernels(x, y), np.ones(len(x)), np.ones(len(y)))


def kid_interval(x: np.ndarray, y: np.ndarray, draws: int = 1000) -> Interval:
    """KID with a bootstrap interval.

    A picture that is drawn twice would be compared to itself, which the unbiased estimate leaves out; so pairs
    of one and the same picture are left out of each draw too.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    kernels, rng = _kernels(x, y), np.random.default_rng(0)
    shares = [np.full(len(side), 1 / len(side)) for side in (x, y)]
    found = [
        _mmd(*kernels, *(rng.multinomial(len(s), s).astype(float) for s in shares))
        for _ in range(draws)
    ]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return Interval(_mmd(*kernels, np.ones(len(x)), np.ones(len(y))), float(low), float(high))


def _kernels(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)


def _mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, u: np.ndarray, v: np.ndarray) -> float:
    """From kernels and how often each picture counts, (N,) and (M,)."""
    return float(_within(xx, u) + _within(yy, v) - 2 * (u @ xy @ v) / (u.sum() * v.sum()))


def _within(kernel: np.ndarray, count: np.ndarray) -> float:
    """The mean over pairs of two different pictures; no number where only one was drawn."""
    pairs = np.outer(count, count)
    np.fill_diagonal(pairs, 0)
    return float((pairs * kernel).sum() / pairs.sum()) if pairs.any() else float("nan")
