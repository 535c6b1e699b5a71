"""Does a picture repeat a training image, whole, mirrored or cropped? By small pictures of colour, without weights.

Each training image is kept as it is and cut to 80 to 95% of its side in nine places. What all training images
share, a style's paper and horizon, is taken off before two pictures are correlated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

SIDE = 16
CROPS = (0.95, 0.9, 0.85, 0.8)  # of the side
BEYOND = (
    3.5  # standard deviations of held-out images' likeness (Fisher's z) that make a copy likely
)
# Held-out images that the threshold is set by, at least: by 2 of them 12% of drawings that are no copies raise the
# alarm, by 10 of them 1.8% (python -m tests.benchmarks.copies).
FEWEST = 10
SHOWN = 6  # pairs

Box = tuple[float, float, float, float]  # left, top, right, bottom, from 0 to 1
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Pair:
    """A picture (index) and the training image (index) that it is likest to, with their correlation."""

    sample: int
    train: int
    likeness: float


class CopyFinder:
    """Finds the likest training image, and knows from held-out images how like two strangers are.

    threshold  of likeness, beyond which a picture is a likely copy; None with fewer than FEWEST held-out images
    """

    def __init__(self, train: Sequence[Image.Image], held_out: Sequence[Image.Image]) -> None:
        boxes = [WHOLE, *_crops()]
        self.per_image = len(boxes)
        self.common = np.stack([_small(image) for image in train]).mean(0)
        self.bank = self._unit(np.stack([_small(i, box) for i in train for box in boxes]))
        self.held_out = len(held_out)
        strangers = [pair.likeness for pair in self.nearest(held_out)]
        self.threshold = threshold_of(strangers) if self.held_out >= FEWEST else None

    def _unit(self, pictures: np.ndarray) -> np.ndarray:
        apart = pictures - self.common
        return apart / (np.linalg.norm(apart, axis=-1, keepdims=True) + 1e-6)

    def nearest(self, images: Sequence[Image.Image]) -> list[Pair]:
        """Each image's likest training image, mirrored ones too."""
        pairs = []
        for i, image in enumerate(images):
            seen = self._unit(np.stack([_small(image), _small(ImageOps.mirror(image))]))
            likeness = (self.bank @ seen.T).max(1)  # (training images x boxes,)
            best = int(likeness.argmax())
            pairs.append(Pair(i, best // self.per_image, float(likeness[best])))
        return pairs

    def figures(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """The likest pairs, likest first; the threshold and the share of likely copies, or why they are left out."""
        pairs = sorted(self.nearest(images), key=lambda pair: -pair.likeness)
        shown = {"pairs": [asdict(pair) for pair in pairs[:SHOWN]]}
        if not pairs:
            return shown | {"left_out": "no sample is left to look at"}
        shown["likest"] = shown["pairs"][0]
        if self.threshold is None:
            return shown | {
                "left_out": f"{self.held_out} held-out images are too few to tell a copy from a likeness "
                f"({FEWEST} are needed): take more pictures in 01, or a larger validation_share in 03"
            }
        share = float(np.mean([pair.likeness > self.threshold for pair in pairs]))
        return shown | {"threshold": self.threshold, "share": share}


def _crops() -> Iterator[Box]:
    for scale in CROPS:
        for left in np.linspace(0, 1 - scale, 3):
            for top in np.linspace(0, 1 - scale, 3):
                yield left, top, left + scale, top + scale


def _small(image: Image.Image, box: Box = WHOLE) -> np.ndarray:
    """A part of a picture as SIDE x SIDE colours, each channel around its own mean, in one row."""
    sizes = (*image.size, *image.size)
    part = tuple(share * size for share, size in zip(box, sizes, strict=True))
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX, box=part)
    pixels = np.asarray(small, np.float32)
    return (pixels - pixels.mean((0, 1))).reshape(-1)


def threshold_of(likeness: Sequence[float]) -> float:
    """Beyond every held-out image, and beyond what chance would bring among many more of them."""
    z = np.arctanh(np.clip(likeness, -0.9999, 0.9999))
    spread = z.std(ddof=1) if len(z) > 1 else 0.0
    return float(max(*likeness, np.tanh(z.mean() + BEYOND * spread), 0.0))
