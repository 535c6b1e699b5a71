"""Pictures to pixels: the shape that a picture is trained at, and the variants of it that are cached.

Aspect-ratio buckets (NovelAI 2022, https://github.com/NovelAI/novelai-aspect-ratio-bucketing) keep a picture whole
where a square would cut a third of it away.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.figures.pictures import open_rgb

WIDEST = 4.0  # the most that one side may be of the other
AREAS = (0.8, 1.13)  # of a bucket, as a share of the square's; 2:1 is 768 x 384 at 512


@dataclass(frozen=True)
class Framing:
    """How pictures are cut for training; what a cache of latents depends on beside pictures and weights."""

    side_px: int  # of the square, or of the square of equal area
    step_px: int = 0  # buckets' sides are multiples of this; 0 cuts squares
    crops: int = 1  # variants along the side that is cut
    flip: bool = False  # and each mirrored

    @classmethod
    def of(cls, config: TrainConfig, step_px: int, augmented: bool) -> "Framing":
        """The framing that a config asks for; held-out pictures are not `augmented`."""
        crops, flip = (config.crops_per_image, config.random_flip) if augmented else (1, False)
        return cls(config.resolution_px, step_px if config.aspect_ratio_buckets else 0, crops, flip)

    def shape(self, width_px: int, height_px: int) -> tuple[int, int]:
        """The (width, height) at which a picture of this size is trained."""
        if not self.step_px:
            return self.side_px, self.side_px
        return bucket_of(width_px / height_px, self.side_px, self.step_px)

    def variants(self, path: Path) -> Tensor:
        """A file's variants as (V, 3, height, width) in -1..1, the middle first.

        Raises RunError if it does not decode.
        """
        try:
            image = open_rgb(path)
        except OSError as error:
            raise RunError(f"{path} does not decode ({error}): run 03_dataset again") from error
        return torch.stack([_pixels(variant) for variant in self._cut(image)])

    def _cut(self, image: Image.Image) -> Iterator[Image.Image]:
        size = self.shape(*image.size)
        places = [k / (self.crops - 1) for k in range(self.crops)] if self.crops > 1 else [0.5]
        for place in sorted(places, key=lambda place: abs(place - 0.5)):
            cut = ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(place, place))
            yield cut
            if self.flip:
                yield ImageOps.mirror(cut)


def bucket_of(ratio: float, side_px: int, step_px: int) -> tuple[int, int]:
    """The (width, height) in multiples of `step_px` nearest to a ratio, of about the area of side_px squared."""
    ratio = min(max(ratio, 1 / WIDEST), WIDEST)
    low, high = (share * side_px**2 for share in AREAS)
    sides = range(step_px, math.isqrt(int(WIDEST * high)) + step_px, step_px)
    shapes = [(w, h) for w in sides for h in sides if low <= w * h <= high]
    square = (side_px, side_px)
    return min(
        [square, *shapes],
        key=lambda s: (abs(math.log(s[0] / s[1] / ratio)), abs(s[0] * s[1] - side_px**2)),
    )


def _pixels(image: Image.Image) -> Tensor:
    """An image as (3, height, width) in -1..1."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1
