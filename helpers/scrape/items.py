"""What a source offers: images not yet read, and why it may end early."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from helpers.config import ScrapeConfig
from helpers.core.records import Post

LATER = "; the next run tries it again"  # ends the reason of what is not refused for good


class Final(ValueError):
    """Why an image is refused, where another try would change nothing."""


class Stopped(Exception):
    """Why a source ends before its end, in one line that says what to do next."""


@dataclass(frozen=True)
class Found:
    """An image at its source, not yet read."""

    name: str  # as the source calls it
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
    # while the source says the same, it has the same picture; empty if only its content tells
    source_id: str = ""
    size_bytes: int | None = None  # where the source tells it unread

    @property
    def stem(self) -> str:
        """The name that it will have, unless another picture of the run has that."""
        return f"{self.shortcode}_{self.index}"


@dataclass
class Listing:
    """All that a source has, as far as that can be known without reading an image."""

    items: list[Found]
    notes: list[str] = field(default_factory=list)  # lines on what lies beside the images
    is_whole: bool = True  # if not, what is missing here may still be there


@dataclass
class Source:
    """Where images come from. Its items may be walked again, and raise Stopped where they end early."""

    words: str  # what the source says of itself, a line for each thing
    items: Iterable[Found]
    total: int | None = None  # images, where that is known beforehand
    stopped: str = ""  # why the last walk ended early
    config: ScrapeConfig | None = None  # the settings that it was listed by
    listing: Listing | None = None  # all that it has, whatever the settings leave out
    # by file name, what came in since it was listed, and what was found to be missing
    new: dict[str, Found] = field(default_factory=dict)
    gone: dict[str, Post] = field(default_factory=dict)
    # what was done to pictures that came in, each with their names at the source
    notes: dict[str, list[str]] = field(default_factory=dict)
    corrected: str = ""  # what became of the permission of images that were there
    news: str = ""  # what is new, changed and gone, once a walk has reached its end
