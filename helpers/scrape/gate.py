"""The gate to a run: every image of a source is decoded in full before it is let in."""

import io
import warnings
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from helpers.scrape.found import LATER, Final, Found

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: a JPEG with more
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and values that swap width and height


class Shape(NamedTuple):
    """What a decoded image file turned out to be; its width and height are as one sees it."""

    suffix: str
    width_px: int
    height_px: int


def load(item: Found, max_mpx: int) -> tuple[bytes, Shape]:
    """An image's content and its shape, asked for at most `item.tries` times.

    Raises ValueError saying why it is refused, and whether the next run tries it again.
    """
    for left in reversed(range(item.tries)):
        try:
            content = item.load()
            return content, inspect(content, max_mpx)
        except Final:
            raise
        except ValueError as error:
            if not left:
                raise ValueError(f"{error}{LATER if item.tries > 1 else ''}") from None
    raise AssertionError("tries is at least 1")


def inspect(content: bytes, max_mpx: int) -> Shape:
    """An image file's suffix and size.

    Decodes it in full: `verify()` passes many a file that fails later.
    Raises ValueError saying why it is no JPEG, PNG or WEBP that can be used.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a bomb is measured here, the rest is told by the error
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_mpx * 1e6:
                raise Final(f"{image.width} x {image.height} px is more than {max_mpx} megapixels")
            image.load()
            is_sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    except UnidentifiedImageError:
        raise ValueError("is no JPEG, PNG or WEBP image") from None
    except Final:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise whatever they please
        raise ValueError(f"does not decode: {' '.join(str(error).split())}") from None
    width_px, height_px = image.size
    if is_sideways:
        width_px, height_px = height_px, width_px
    return Shape(SUFFIXES[image.format], width_px, height_px)
