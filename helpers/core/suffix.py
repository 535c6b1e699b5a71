"""Find, remove and append the suffix: fixed words that end every caption, and trigger the trained style."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

SEPARATORS = r"\s,.;:!、。，"
AROUND = SEPARATORS + r"()–—-"
MIN_ENDING_WORDS = 3  # of a shared ending; two words may be the name of one thing
MAX_ENDING_WORDS = 16


@cache
def _ending(suffix: str) -> re.Pattern[str] | None:
    """Compile a regular expression for all copies of the suffix at a text's end. A suffix without words gives None."""
    words = re.findall(rf"[^{SEPARATORS}]+", suffix)
    if not words:
        return None
    once = rf"(?<!\w){rf'[{SEPARATORS}]+'.join(map(re.escape, words))}[{AROUND}]*"
    return re.compile(rf"[{AROUND}]*(?:{once})+$", re.IGNORECASE)


def strip_suffix(text: str, suffix: str) -> str:
    """Remove the suffix from the end of a text, ignoring case and punctuation. Other texts stay unchanged."""
    ending = _ending(suffix)
    return ending.sub("", text) if ending else text


def has_suffix(text: str, suffix: str) -> bool:
    """Return True if a text ends with the suffix, ignoring case and punctuation."""
    return strip_suffix(text, suffix) != text


def append_suffix(text: str, suffix: str) -> str:
    """Make a text end with the suffix exactly once."""
    return (strip_suffix(text, suffix) + suffix).lstrip()


def common_ending(captions: Sequence[str], share: float = 0.8) -> str:
    """Return the longest ending (3 to 16 words) that most captions share, or "" if there is none."""
    words = [caption.lower().rstrip(".,;! ").split() for caption in captions]
    for count in range(MAX_ENDING_WORDS, MIN_ENDING_WORDS - 1, -1):
        endings = Counter(" ".join(w[-count:]) for w in words if len(w) > count)
        ending, times = endings.most_common(1)[0] if endings else ("", 0)
        if times >= max(2, share * len(captions)):
            return ending
    return ""
