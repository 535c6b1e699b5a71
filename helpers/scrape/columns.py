"""Which column of a dataset holds the art, and which the captions: asked for, or the likeliest, and told."""

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.scrape.caption_files import POSITIONS, check_choice, choose, some
from helpers.scrape.caption_lists import captions_in, rank

if TYPE_CHECKING:
    from datasets import Features
    from pyarrow import Table

# what a picture was made from or goes with, as ControlNet's and InstructPix2Pix's datasets name it
NO_ART = re.compile(
    r"cond|mask|control|depth|canny|edge|pose|segment|source|input|original|before|hint|sketch|scribble|normal"
    r"|thumb|preview|reference|init",
    re.IGNORECASE,
)


class Columns:
    """The columns of a dataset that are read. Raises RunError for a setting that names none of them."""

    def __init__(self, features: "Features", config: ScrapeConfig) -> None:
        import datasets

        self.choice = config.caption_choice
        self.images = [n for n, kind in features.items() if isinstance(kind, datasets.Image)]
        self.image = self._image(config.image_column)
        texts = [name for name, kind in features.items() if _is_text(kind)]
        check_choice(self.choice, texts)
        self.texts = [self.choice]
        if self.choice in POSITIONS:
            self.texts = sorted((n for n in texts if rank(n) is not None), key=rank)
        self.taken: Counter[str] = Counter()
        self.missing = self.several = 0

    def _image(self, asked: str) -> str:
        if asked and asked not in self.images:
            raise RunError(
                f"image_column is {asked!r}: choose one of {', '.join(self.images) or 'none'}"
            )
        likely = [name for name in self.images if not NO_ART.search(name)]
        return asked or next(iter((*likely, *self.images)), "")

    def captions(self, table: "Table") -> list[str | None]:
        """The caption of each row, None where it has none."""
        columns = {name: table[name].to_pylist() for name in self.texts}
        return [
            self._caption({name: captions_in(values[i]) for name, values in columns.items()})
            for i in range(len(table))
        ]

    def _caption(self, sources: dict[str, list[str]]) -> str | None:
        caption = choose(sources, self.choice)
        if caption is None:
            self.missing += 1
            return None
        name = next(name for name, found in sources.items() if found)
        self.taken[name] += 1
        self.several += len(sources[name]) > 1
        return caption

    def __str__(self) -> str:
        """What was taken, and below it what was left, a line each."""
        sources = " and ".join(f"{n} {name}" for name, n in self.taken.most_common())
        words = [
            f"captions from {sources}" if sources else f"no captions for {self.missing} images"
        ]
        if sources and self.missing:
            words.append(f"{self.missing} images have none")
        if self.several and self.choice in POSITIONS:
            words.append(f"{self.several} have several: {self.choice} is taken (caption_choice)")
        if others := [name for name in self.texts if name not in self.taken]:
            words.append(f"also there: {some(others)} (caption_choice)")
        if others := [name for name in self.images if name != self.image]:
            words.append(f"images from {self.image}, not {some(others)} (image_column)")
        return "\n  ".join(words)


def _is_text(kind: Any) -> bool:
    """Whether a column's values are texts, or lists of them."""
    kind = getattr(kind, "feature", kind)
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return getattr(kind, "dtype", "") in ("string", "large_string", "string_view")
