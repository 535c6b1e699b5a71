"""How long a text is to a text encoder, and a text cut to that length with its suffix kept."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any


def count_tokens(tokenizer: Any, text: str) -> int:
    """The tokens of a text by a transformers tokenizer, begin and end included; nothing is cut or warned of."""
    return len(tokenizer(text, verbose=False).input_ids)


def shorten(text: str, suffix: str, longest: int, count: Callable[[str], int]) -> str:
    """A text with so many of its last words before the suffix left out that it has no more than `longest` tokens.

    A text that fits, or does not end with the suffix, stays as it is: an encoder cuts the latter's end.
    """
    if count(text) <= longest or not suffix or not text.endswith(suffix):
        return text
    words = text.removesuffix(suffix).split()

    def tokens(kept: int) -> int:
        return count(" ".join(words[:kept]) + suffix)

    kept = max(0, bisect_right(range(len(words)), longest, key=tokens) - 1)
    return " ".join(words[:kept]) + suffix
