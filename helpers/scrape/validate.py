"""Validate images: every image of a source is fully decoded before it is written to the run."""

from typing import NamedTuple

from helpers.core.decode import SUFFIXES, ImageError, TooLarge, decode
from helpers.scrape.items import RETRY_NOTE, PermanentRefusal, SourceItem


class ImageInfo(NamedTuple):
    """The format and the size in pixels of a decoded image, after EXIF orientation is applied."""

    suffix: str
    width_px: int
    height_px: int
    notes: tuple[str, ...] = ()  # from decode.py


def load_image(item: SourceItem, max_mpx: int) -> tuple[bytes, ImageInfo]:
    """Load and decode an item's image in at most `item.tries` attempts, and return its bytes and format.

    Raises ValueError with the reason for a rejection, and whether the next run tries the image again.
    """
    for left in reversed(range(item.tries)):
        try:
            content = item.load()
            return content, validate_image(content, max_mpx)
        except PermanentRefusal:
            raise
        except ValueError as error:
            if not left:
                raise ValueError(f"{error}{RETRY_NOTE if item.tries > 1 else ''}") from None
    raise AssertionError("tries is at least 1")


def validate_image(content: bytes, max_mpx: int) -> ImageInfo:
    """Decode an image file completely, and return its format and size.

    Raises ValueError if it cannot be decoded, PermanentRefusal if it is too large.
    """
    try:
        picture = decode(content, max_mpx)
    except TooLarge as error:
        advice = "set max_image_mpx higher in more, or save it smaller"
        raise PermanentRefusal(f"{error}: {advice}") from None
    except ImageError as error:
        raise ValueError(str(error)) from None
    return ImageInfo(SUFFIXES[picture.format], *picture.image.size, picture.notes)
