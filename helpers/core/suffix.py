"""Find, remove and append the suffix: the fixed words at a caption's end that trigger the trained style."""

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
    """Compile a regular expression for a suffix at a text's end, even repeated; return None without words."""
    words = re.findall(rf"[^{SEPARATORS}]+", suffix)
    if not words:
        return None
    once = rf"(?<!\w){rf'[{SEPARATORS}]+'.join(map(re.escape, words))}[{AROUND}]*"
    return re.compile(rf"[{AROUND}]*(?:{once})+$", re.IGNORECASE)


def strip_suffix(text: str, suffix: str) -> str:
    """Remove the suffix from a text's end, ignoring case and punctuation; return other texts unchanged."""
    ending = _ending(suffix)
    return ending.sub("", text) if ending else text


def has_suffix(text: str, suffix: str) -> bool:
    """Return True if a text ends in the suffix, ignoring case and punctuation."""
    return strip_suffix(text, suffix) != text


def append_suffix(text: str, suffix: str) -> str:
    """Append the suffix to a text, replacing any suffix that the text ends in already."""
    return (strip_suffix(text, suffix) + suffix).lstrip()


def common_ending(captions: Sequence[str], share: float = 0.8) -> str:
    """Return the longest ending (3 to 16 words) that at least `share` of captions have: a likely suffix, or ""."""
    words = [caption.lower().rstrip(".,;! ").split() for caption in captions]
    for count in range(MAX_ENDING_WORDS, MIN_ENDING_WORDS - 1, -1):
        endings = Counter(" ".join(w[-count:]) for w in words if len(w) > count)
        ending, times = endings.most_common(1)[0] if endings else ("", 0)
        if times >= max(2, share * len(captions)):
            return ending
    return ""
