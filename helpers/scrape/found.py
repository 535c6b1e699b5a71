"""What a source offers: images not yet read, and why it may end early."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from helpers.run import IMAGE_SUFFIXES

LATER = "; the next run tries it again"  # ends the reason of what is not refused for good


class Final(ValueError):
    """Why an image is refused, where another try would change nothing."""


class Stopped(Exception):
    """Why a source ends before its end, in one line that says what to do next."""


@dataclass(frozen=True)
class Found:
    """An image at its source, not yet read."""

    name: str  # as the source calls it, for messages
    shortcode: str
    index: int  # within its post, from 1
    load: Callable[[], bytes]  # raises ValueError saying why it cannot be had
    caption: str | None = None  # from a .txt beside it
    account: str = ""
    taken_at: str = ""
    url: str = ""
    post_caption: str = ""  # as published
    alt_text: str = ""
    likes: int | None = None
    tries: int = 1  # how often `load` may be called
    progress: str = ""  # of the source when it offered this one

    @property
    def stem(self) -> str:
        return f"{self.shortcode}_{self.index}"

    def known_name(self, known: dict) -> str | None:
        """The file name under which the run has this image, if it has it."""
        return next(
            (f"{self.stem}.{s}" for s in IMAGE_SUFFIXES if f"{self.stem}.{s}" in known),
            None,
        )


@dataclass
class Source:
    """Where images come from. Its items may be walked again, and raise Stopped where they end early."""

    words: str  # what the source says of itself, in a line
    items: Iterable[Found]
    total: int | None = None  # images, where that is known beforehand
    stopped: str = ""  # why the last walk ended early
