"""The gate to a run: every image of a source is decoded in full before it is let in."""

from typing import NamedTuple

from helpers.core.decode import SUFFIXES, ImageError, TooLarge, decode
from helpers.scrape.items import LATER, Final, Found


class Shape(NamedTuple):
    """What a decoded image file turned out to be; its width and height are as one sees it."""

    suffix: str
    width_px: int
    height_px: int
    notes: tuple[str, ...] = ()  # of decode.py


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
    """An image file's suffix and size, by decoding it as every later stage will.

    Raises ValueError saying why it is no image that can be used; Final where it is too large.
    """
    try:
        picture = decode(content, max_mpx)
    except TooLarge as error:
        raise Final(f"{error}: set max_image_mpx higher in more, or save it smaller") from None
    except ImageError as error:
        raise ValueError(str(error)) from None
    return Shape(SUFFIXES[picture.format], *picture.image.size, picture.notes)
