"""The suffix that calls the style: told from a caption's own words, taken off, and added so that it stands once."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

SEPARATORS = r"\s,.;:!、。，"
AROUND = SEPARATORS + r"()–—-"
MIN_ENDING_WORDS = 3  # of an ending that captions share; two words may be one thing's name
MAX_ENDING_WORDS = 16


@cache
def _ending(suffix: str) -> re.Pattern[str] | None:
    """The suffix at a text's end, however often and in whatever case, with commas, spaces and stops between."""
    words = re.findall(rf"[^{SEPARATORS}]+", suffix)
    if not words:
        return None
    once = rf"(?<!\w){rf'[{SEPARATORS}]+'.join(map(re.escape, words))}[{AROUND}]*"
    return re.compile(rf"[{AROUND}]*(?:{once})+$", re.IGNORECASE)


def strip_suffix(text: str, suffix: str) -> str:
    """A text without the suffix at its end; one that does not end in it comes back as it is."""
    ending = _ending(suffix)
    return ending.sub("", text) if ending else text


def has_suffix(text: str, suffix: str) -> bool:
    """Whether a text ends in the suffix, whatever its case, commas, spaces or a stop at the end."""
    return strip_suffix(text, suffix) != text


def append_suffix(text: str, suffix: str) -> str:
    """A text that ends in the suffix once, whether or not it did before."""
    return (strip_suffix(text, suffix) + suffix).lstrip()


def common_ending(captions: Sequence[str], share: float = 0.8) -> str:
    """The words in which at least `share` of the captions end, or "".

    Such an ending is a style's suffix in all likelihood, whatever the suffix that is set.
    """
    words = [caption.lower().rstrip(".,;! ").split() for caption in captions]
    for count in range(MAX_ENDING_WORDS, MIN_ENDING_WORDS - 1, -1):
        endings = Counter(" ".join(w[-count:]) for w in words if len(w) > count)
        ending, times = endings.most_common(1)[0] if endings else ("", 0)
        if times >= max(2, share * len(captions)):
            return ending
    return ""
