"""An image that a source offers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """An image at its source, not yet read."""

    name: str  # as the source calls it, for messages
    shortcode: str
    index: int  # within its post, from 1
    load: Callable[[], bytes]
    caption: str | None = None  # from a .txt beside it
    account: str = ""
    taken_at: str = ""
    url: str = ""

    @property
    def stem(self) -> str:
        return f"{self.shortcode}_{self.index}"

    def known_name(self, known: dict) -> str | None:
        """The file name under which the run has this image, if it has it."""
        return next(
            (f"{self.stem}.{s}" for s in ("jpg", "png", "webp") if f"{self.stem}.{s}" in known),
            None,
        )
