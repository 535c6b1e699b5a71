"""Pictures that the project draws itself, for the figures to show."""

import io

from PIL import Image

from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import Figure, Scene

CAT = Scene(14, Figure("blue", "cat"), Figure("red", "car"), "on a green hill")
BEAR = Scene(21, Figure("red", "bear"), Figure("yellow", "umbrella"), "on a sandy beach")
RABBIT = Scene(33, Figure("purple", "rabbit"), Figure("green", "tree"), "in the snow")
FROG = Scene(45, Figure("yellow", "frog"), Figure("purple", "mushroom"), "at night")


def watercolour(scene: Scene, size_px: int = 256) -> Image.Image:
    return paint_watercolour(scene, size_px)


def flat(scene: Scene, size_px: int = 256) -> Image.Image:
    return paint_flat(scene, size_px)


def alike(scene: Scene, count: int) -> list[Scene]:
    """Scenes that show the same, as the pictures of one post often do."""
    return [Scene(scene.seed + i, scene.animal, scene.thing, scene.place) for i in range(count)]


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()
