"""Find pictures that copy a training image, also mirrored or cropped, by comparing thumbnails.

Each training image is compared in full and cropped to 80 to 95% of its side at nine places. The mean of all training
images (a style's paper, its horizon) is subtracted before two pictures are correlated.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageOps

THUMBNAIL_PX = 16
CROPS = (0.95, 0.9, 0.85, 0.8)  # of the side
# A likely copy is this many standard deviations more similar than held-out images are (by Fisher's z).
Z_THRESHOLD = 3.5
# With 2 held-out images to set the threshold, 12% of drawings that are no copies raise the alarm; with 10, 1.8%
# (python -m tests.benchmarks.copies).
MIN_HELD_OUT = 10
MAX_SHOWN = 6  # pairs

Box = tuple[float, float, float, float]  # left, top, right, bottom, from 0 to 1
FULL: Box = (0.0, 0.0, 1.0, 1.0)
BOXES: list[Box] = [FULL] + [
    (left, top, left + side, top + side)
    for side in CROPS
    for left, top in product(np.linspace(0, 1 - side, 3), repeat=2)
]


@dataclass(frozen=True)
class Pair:
    """A picture's index, the index of the most similar training image, and the correlation of the two."""

    sample: int
    train: int
    likeness: float


class CopyFinder:
    """A search for the training image most similar to a picture.

    threshold  the likeness above which a picture is a likely copy; None with fewer than MIN_HELD_OUT held-out images
    """

    def __init__(self, train: Sequence[Image.Image], held_out: Sequence[Image.Image]) -> None:
        self.mean = np.stack([_thumbnail(image) for image in train]).mean(0)
        self.bank = self._normalize(np.stack([_thumbnail(i, box) for i in train for box in BOXES]))
        self.held_out_count = len(held_out)
        usual = [pair.likeness for pair in self.nearest(held_out)]
        self.threshold = copy_threshold(usual) if self.held_out_count >= MIN_HELD_OUT else None

    def _normalize(self, thumbnails: np.ndarray) -> np.ndarray:
        centred = thumbnails - self.mean
        return centred / (np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6)

    def nearest(self, images: Sequence[Image.Image]) -> list[Pair]:
        """Return a Pair of each image and its most similar training image. Mirror images are compared as well."""
        pairs = []
        for i, image in enumerate(images):
            both = np.stack([_thumbnail(image), _thumbnail(ImageOps.mirror(image))])
            likeness = (self.bank @ self._normalize(both).T).max(1)  # (training images x boxes,)
            best = int(likeness.argmax())
            pairs.append(Pair(i, best // len(BOXES), float(likeness[best])))
        return pairs

    def figures(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """Return the most similar pairs and the share of likely copies. `left_out` explains a missing share."""
        pairs = sorted(self.nearest(images), key=lambda pair: -pair.likeness)
        found = {"pairs": [asdict(pair) for pair in pairs[:MAX_SHOWN]]}
        if not pairs:
            return found | {"left_out": "no sample is left to look at"}
        found["likest"] = found["pairs"][0]
        if self.threshold is None:
            return found | {
                "left_out": f"{self.held_out_count} held-out images are too few to tell a copy from a likeness "
                f"({MIN_HELD_OUT} are needed): take more pictures in 01, or a larger validation_share in 03"
            }
        share = float(np.mean([pair.likeness > self.threshold for pair in pairs]))
        return found | {"threshold": self.threshold, "share": share}


def _thumbnail(image: Image.Image, box: Box = FULL) -> np.ndarray:
    """Return a thumbnail of the area `box` of a picture as a vector, with each channel's mean subtracted."""
    part, size = tuple(np.multiply(box, image.size * 2)), (THUMBNAIL_PX, THUMBNAIL_PX)
    small = image.convert("RGB").resize(size, Image.Resampling.BOX, box=part)
    pixels = np.asarray(small, np.float32)
    return (pixels - pixels.mean((0, 1))).reshape(-1)


def copy_threshold(likeness: Sequence[float]) -> float:
    """Return the likeness above which a picture counts as a copy, computed from held-out images' likeness.

    It is the maximum or, if higher, Z_THRESHOLD standard deviations above the mean.
    """
    z = np.arctanh(np.clip(likeness, -0.9999, 0.9999))
    spread = z.std(ddof=1) if len(z) > 1 else 0.0
    return float(max(*likeness, np.tanh(z.mean() + Z_THRESHOLD * spread), 0.0))
