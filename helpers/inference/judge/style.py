"""Measure style gain: how far the tuned model's pictures moved from the base model's towards the art.

The features are statistics of colour and texture (numpy and Pillow only); no network is needed.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from helpers.inference.judge.groups import Interval

SIDE_PX = 128  # all images are compared at this size
RIDGE = 1.0  # in units of a feature's own variance
HALFWAY = 0.5


def features(image: Image.Image) -> np.ndarray:
    """Return statistics (26,) of a picture's colours, border and texture."""
    small = image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, np.float32) / 255  # (SIDE_PX, SIDE_PX, 3)
    return np.concatenate([_colour_features(pixels), _texture_features(pixels.mean(-1))])


def _colour_features(pixels: np.ndarray) -> np.ndarray:
    saturation = pixels.max(-1) - pixels.min(-1)
    rim = SIDE_PX // 16
    strips = (pixels[:rim], pixels[-rim:], pixels[:, :rim], pixels[:, -rim:])
    border = np.concatenate([strip.reshape(-1, 3) for strip in strips])
    return np.concatenate(
        [
            pixels.mean((0, 1)),
            pixels.std((0, 1)),
            border.mean(0),
            border.std(0),
            np.quantile(saturation, (0.1, 0.5, 0.9)),
            [saturation.mean(), saturation.std()],
        ]
    )


def _texture_features(grey: np.ndarray) -> np.ndarray:
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    # not scipy.ndimage.laplace: it rounds otherwise (by 4e-7), and figures of older reports would change
    inner = grey[1:-1, 1:-1]
    laplacian = np.abs(
        4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    )
    return np.concatenate(
        [
            np.log(np.quantile(laplacian, (0.25, 0.5, 0.75, 0.95)) + 1e-3),
            [across.mean(), down.mean(), (across < 0.004).mean()],
            [(grey < 0.22).mean(), (grey > 0.88).mean()],
        ]
    )


@dataclass(frozen=True)
class StyleAxis:
    """A line from the base model's pictures (0) to the art (1): Fisher's linear discriminant (1936) with a ridge."""

    origin: np.ndarray
    direction: np.ndarray

    @classmethod
    def between(cls, base: np.ndarray, art: np.ndarray) -> "StyleAxis":
        """Fit a StyleAxis to the features of the base model's pictures (N, F) and of the art (M, F)."""
        spread = np.concatenate([base - base.mean(0), art - art.mean(0)])
        scale = spread.std(0) + 1e-6
        gap = (art.mean(0) - base.mean(0)) / scale
        within = np.cov((spread / scale).T) + RIDGE * np.eye(len(gap))
        weights = np.linalg.solve(within, gap)
        return cls(base.mean(0), weights / scale / (weights @ gap))

    def place(self, pictures: np.ndarray) -> np.ndarray:
        """Return pictures' positions (N,) on the axis, from their features (N, F)."""
        return (pictures - self.origin) @ self.direction


def style_gain(base: np.ndarray, tuned: np.ndarray, art: np.ndarray, draws: int = 2000) -> Interval:
    """Return the mean position of tuned pictures, with the base's mean at 0 and the mean of held-out art at 1.

    base, tuned, art  positions on a StyleAxis that was fitted to other pictures
    The interval is by bootstrap (Efron 1979).
    """
    rng = np.random.default_rng(0)

    def gain(b: np.ndarray, t: np.ndarray, a: np.ndarray) -> float:
        return float((t.mean() - b.mean()) / (a.mean() - b.mean()))

    gains = [
        gain(*(rng.choice(group, len(group)) for group in (base, tuned, art))) for _ in range(draws)
    ]
    low, high = np.quantile(gains, (0.025, 0.975))
    return Interval(gain(base, tuned, art), float(low), float(high))


def order_share(*groups: np.ndarray, draws: int = 2000) -> float:
    """Return the share of bootstrap draws in which the groups' means rise from the first group to the last.

    Groups of equal length come from the same prompts and seeds, so they are resampled with the same indices.
    """
    rng = np.random.default_rng(0)
    rising = 0
    for _ in range(draws):
        picked = {size: rng.integers(size, size=size) for size in sorted(set(map(len, groups)))}
        means = [group[picked[len(group)]].mean() for group in groups]
        rising += bool((np.diff(means) > 0).all())
    return rising / draws
