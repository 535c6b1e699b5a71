"""The few of torchvision's transforms that diffusers' scripts use, for machines where torchvision does not install."""

import random

import numpy as np
import torch
from PIL import Image, ImageOps


class InterpolationMode:
    NEAREST, BILINEAR, BICUBIC = (Image.Resampling[n] for n in ("NEAREST", "BILINEAR", "BICUBIC"))
    LANCZOS, BOX, HAMMING = (Image.Resampling[n] for n in ("LANCZOS", "BOX", "HAMMING"))


def Compose(steps):  # noqa: N802
    def composed(image):
        for step in steps:
            image = step(image)
        return image

    return composed


def Resize(side, interpolation=Image.Resampling.BILINEAR):  # noqa: N802
    def resize(image):
        scale = side / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        return image if scale == 1 else image.resize(size, interpolation)

    return resize


def CenterCrop(side):  # noqa: N802
    return lambda image: ImageOps.fit(image, (side, side))


def RandomCrop(side):  # noqa: N802
    def crop(image):
        x, y = random.randint(0, image.width - side), random.randint(0, image.height - side)
        return image.crop((x, y, x + side, y + side))

    return crop


def RandomHorizontalFlip(p=0.5):  # noqa: N802
    return lambda image: ImageOps.mirror(image) if random.random() < p else image


def crop(image, top, left, height, width):
    return image.crop((left, top, left + width, top + height))


def Lambda(function):  # noqa: N802
    return function


def ToTensor():  # noqa: N802
    def convert(image):
        return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)

    return convert


def Normalize(mean, deviation):  # noqa: N802
    return lambda pixels: (pixels - mean[0]) / deviation[0]
