"""Choose a Hub dataset's image column and caption columns: those in the settings, else the likeliest by name."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.scrape.caption_files import POSITIONS, check_caption_choice, choose_caption, some
from helpers.scrape.caption_lists import captions_in, rank

if TYPE_CHECKING:
    from datasets import Features
    from pyarrow import Table

# columns of inputs and conditions in ControlNet's and InstructPix2Pix's datasets
NOT_ART = re.compile(
    r"cond|mask|control|depth|canny|edge|pose|segment|source|input|original|before|hint|sketch|scribble|normal"
    r"|thumb|preview|reference|init",
    re.IGNORECASE,
)


class Columns:
    """A Hub dataset's image column and caption columns. Raises RunError if a setting names a column that is missing."""

    def __init__(self, features: "Features", config: ScrapeConfig) -> None:
        import datasets

        self.choice = config.caption_choice
        self.images = [n for n, kind in features.items() if isinstance(kind, datasets.Image)]
        self.image = self._image(config.image_column)
        texts = [name for name, kind in features.items() if _is_text(kind)]
        check_caption_choice(self.choice, texts)
        self.texts = [self.choice]
        if self.choice in POSITIONS:
            self.texts = sorted((n for n in texts if rank(n) is not None), key=rank)
        self.used: Counter[str] = Counter()
        self.missing = self.with_several = 0

    def _image(self, asked: str) -> str:
        if asked and asked not in self.images:
            raise RunError(
                f"image_column is {asked!r}: choose one of {', '.join(self.images) or 'none'}"
            )
        likely = [name for name in self.images if not NOT_ART.search(name)]
        return asked or next(iter((*likely, *self.images)), "")

    def captions(self, table: "Table") -> list[str | None]:
        """Return the caption of each row of `table`, with None for a row without a caption."""
        columns = {name: table[name].to_pylist() for name in self.texts}
        return [
            self._caption({name: captions_in(values[i]) for name, values in columns.items()})
            for i in range(len(table))
        ]

    def _caption(self, sources: dict[str, list[str]]) -> str | None:
        caption = choose_caption(sources, self.choice)
        if caption is None:
            self.missing += 1
            return None
        name = next(name for name, found in sources.items() if found)
        self.used[name] += 1
        self.with_several += len(sources[name]) > 1
        return caption

    def __str__(self) -> str:
        """Return a summary in lines: the columns that captions and images come from, and the other candidates."""
        sources = " and ".join(f"{n} {name}" for name, n in self.used.most_common())
        words = [
            f"captions from {sources}" if sources else f"no captions for {self.missing} images"
        ]
        if sources and self.missing:
            words.append(f"{self.missing} images have none")
        if self.with_several and self.choice in POSITIONS:
            words.append(
                f"{self.with_several} have several: {self.choice} is used (caption_choice)"
            )
        if others := [name for name in self.texts if name not in self.used]:
            words.append(f"also found: {some(others)} (caption_choice)")
        if others := [name for name in self.images if name != self.image]:
            words.append(f"images from {self.image}, not {some(others)} (image_column)")
        return "\n  ".join(words)


def _is_text(kind: Any) -> bool:
    """Return whether the type of a `datasets` column is string or list of strings."""
    kind = getattr(kind, "feature", kind)
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return getattr(kind, "dtype", "") in ("string", "large_string", "string_view")
