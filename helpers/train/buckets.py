"""Load training images as pixels: choose an aspect-ratio bucket, resize, crop and mirror.

Aspect-ratio buckets (NovelAI 2022, https://github.com/NovelAI/novelai-aspect-ratio-bucketing) keep the whole image.
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

MAX_ASPECT_RATIO = 4.0
AREAS = (0.8, 1.13)  # of a bucket, relative to the square; 2:1 is 768 x 384 at 512


@dataclass(frozen=True)
class Crop:
    """The settings by which images are resized, cropped and augmented. They key the cache, in this order."""

    side_px: int  # of the square, or of the square that has a bucket's area
    step_px: int = 0  # sides of buckets are multiples of this; 0 crops squares
    crops: int = 1  # per image, along the side that is cropped
    flip: bool = False  # adds each crop mirrored

    @classmethod
    def from_config(cls, config: TrainConfig, step_px: int, augmented: bool) -> "Crop":
        """Return the Crop of a training's settings, with a single unmirrored crop per image unless `augmented`."""
        crops, flip = (config.crops_per_image, config.random_flip) if augmented else (1, False)
        return cls(config.resolution_px, step_px if config.aspect_ratio_buckets else 0, crops, flip)

    def shape(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return the (width, height) to which an image of `width_px` x `height_px` is resized and cropped."""
        if not self.step_px:
            return self.side_px, self.side_px
        return nearest_bucket(width_px / height_px, self.side_px, self.step_px)

    def augmentations(self, path: Path) -> Tensor:
        """Return an image's V crops, with mirror images if `flip`, as a tensor (V, 3, height, width) in -1..1.

        The most central crop comes first. Raises RunError if the file does not decode.
        """
        try:
            image = open_rgb(path)
        except OSError as error:
            raise RunError(f"{path} does not decode ({error}): run 03_dataset again") from error
        return torch.stack([_pixels(crop) for crop in self._crops(image)])

    def _crops(self, image: Image.Image) -> Iterator[Image.Image]:
        size = self.shape(*image.size)
        places = [k / (self.crops - 1) for k in range(self.crops)] if self.crops > 1 else [0.5]
        for place in sorted(places, key=lambda place: abs(place - 0.5)):
            crop = ImageOps.fit(image, size, Image.Resampling.LANCZOS, centering=(place, place))
            yield crop
            if self.flip:
                yield ImageOps.mirror(crop)


def nearest_bucket(ratio: float, side_px: int, step_px: int) -> tuple[int, int]:
    """Return the bucket (width, height) nearest to an aspect ratio, with about side_px**2 pixels."""
    ratio = min(max(ratio, 1 / MAX_ASPECT_RATIO), MAX_ASPECT_RATIO)
    low, high = (share * side_px**2 for share in AREAS)
    sides = range(step_px, math.isqrt(int(MAX_ASPECT_RATIO * high)) + step_px, step_px)
    shapes = [(w, h) for w in sides for h in sides if low <= w * h <= high]

    def distance(shape: tuple[int, int]) -> tuple[float, int]:
        width, height = shape
        return abs(math.log(width / height / ratio)), abs(width * height - side_px**2)

    return min([(side_px, side_px), *shapes], key=distance)


def _pixels(image: Image.Image) -> Tensor:
    """Return an image as a tensor (3, height, width) in -1..1."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1
