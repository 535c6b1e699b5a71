"""The types that image sources return, and the exceptions that reject an image or stop a source."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from helpers.config import ScrapeConfig
from helpers.core.records import Post

RETRY_NOTE = "; the next run tries it again"  # ends a reason that is not permanent


class PermanentRefusal(ValueError):
    """Raised with the reason if an image is rejected for good, as a retry would not help."""


class SourceStopped(Exception):
    """Raised if a source ends early. The message says why, and what to do next."""


@dataclass(frozen=True)
class SourceItem:
    """An image of a source before it is read: its names and metadata, and the function that reads it."""

    name: str  # in the source
    shortcode: str
    index: int  # within its post, from 1
    load: Callable[[], bytes]  # raises ValueError with the reason if it fails
    caption: str | None = None  # from the .txt of the same name
    account: str = ""
    taken_at: str = ""
    url: str = ""
    post_caption: str = ""  # as published
    alt_text: str = ""
    likes: int | None = None
    tries: int = 1  # how often `load` may be called
    progress: str = ""  # how far the source was
    # unchanged while the image is; empty if only the content identifies it
    source_id: str = ""
    size_bytes: int | None = None  # if known without reading

    @property
    def stem(self) -> str:
        """The image's file name in the run without suffix, if no other image has that name."""
        return f"{self.shortcode}_{self.index}"


@dataclass
class Listing:
    """All images of a source, listed without reading them."""

    items: list[SourceItem]
    notes: list[str] = field(default_factory=list)  # lines about captions and other files
    is_complete: bool = True  # if False, images missing here may still exist


@dataclass
class Source:
    """A source opened for ingestion: a summary, the images to ingest, and what the last pass found.

    Iterating `items` may be repeated; it raises SourceStopped if the source ends early.
    """

    words: str  # a summary, in lines
    items: Iterable[SourceItem]
    total: int | None = None  # images, if known beforehand
    stopped: str = ""  # why the last pass ended early
    config: ScrapeConfig | None = None  # the settings it was listed with
    listing: Listing | None = None  # before the settings filter it
    # by file name: images ingested since it was listed, and images found to be gone
    new: dict[str, SourceItem] = field(default_factory=dict)
    gone: dict[str, Post] = field(default_factory=dict)
    # by conversion done to an image, such as to sRGB: the names in the source
    notes: dict[str, list[str]] = field(default_factory=dict)
    corrected: str = ""  # a line on changed permissions
    news: str = ""  # what is new, changed and gone, after a full pass
