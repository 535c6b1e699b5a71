"""Find captions to review: too long for CLIP, with banned or style words, duplicate or incomplete."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from helpers.caption.claude.prompt import split_words
from helpers.config import CaptionConfig, DatasetConfig
from helpers.core.files import read_json
from helpers.core.records import Caption
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.models.tokens import base_model_of, token_counter, token_limit

TOO_LONG = "over"  # begins the name of a problem that Accept does not resolve
MEDIA = (
    "watercolor, watercolour, aquarelle, painting, drawing, illustration, cartoon, sketch, artwork, "
    "digital art, line art, ink, gouache, pencil drawing, hand-drawn, drawn, painted, illustrated, style"
)
SMALL_WORDS = frozenset("a an and at by for from in of on or the to with style".split())
CUT_OFF = re.compile(
    r"(?:\b(?:a|an|and|at|by|for|from|in|is|of|on|or|the|to|with|while|wearing|holding)|[,;:&-]|\.\.\.|…)$",
    re.IGNORECASE,
)
LETTERING = re.compile(
    r"[\"“”«»]|\b(?:text|lettering|caption|words?|says?|saying|reads|written|labell?ed|signature"
    r"|watermark|logo|quote)\b",
    re.IGNORECASE,
)


def find_problems(
    config: CaptionConfig, run: Run, rows: Iterable[Caption]
) -> dict[str, list[Caption]]:
    """Return the captions with each problem, as {problem: captions}."""
    rows = list(rows)
    usable = [row for row in rows if row.is_usable]
    same = Counter(_plain(row.caption) for row in usable)
    suffix = suffix_of(config, run)
    banned = split_words(config.banned_words)
    style = [word for word in style_words(suffix) if word not in banned]
    base, own = base_model_of(run), config.clip_tokenizer
    limit = token_limit(own or base)
    count, note = token_counter(own or base)
    too_long = f"{TOO_LONG} {limit} CLIP tokens with the suffix{note}"

    def having(matches: Callable[[str], object]) -> list[Caption]:
        return [row for row in usable if matches(strip_suffix(row.caption, suffix))]

    return {
        "no caption": [row for row in rows if not row.is_usable],
        "banned word": having(lambda text: words_in(text, banned)),
        "style word": having(lambda text: words_in(text, style)),
        "same words as another": having(lambda text: same[_plain(text)] > 1),
        too_long: having(lambda text: count(text + suffix) > limit),
        "incomplete": having(is_incomplete),
        "lettering": having(LETTERING.search),
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().rstrip(".").split())


def suffix_of(config: CaptionConfig, run: Run) -> str:
    """Return the suffix that 03 appends to captions, from the settings of 02 or else of 03."""
    if config.suffix:
        return config.suffix
    kept = run.config("dataset")
    return read_json(kept)["suffix"] if kept.is_file() else DatasetConfig.suffix


def style_words(suffix: str) -> list[str]:
    """Return the words that name a style: the words of the suffix, and names of art media."""
    own = [word for word in re.findall(r"[\w'-]+", suffix.lower()) if word not in SMALL_WORDS]
    return list(dict.fromkeys(own + split_words(MEDIA)))


def words_in(text: str, words: Iterable[str]) -> list[str]:
    """Return those of `words` that occur in a text, in singular or plural and in any letter case."""
    pattern = r"(?<!\w){}(?:s|es)?(?!\w)"
    return [w for w in words if re.search(pattern.format(re.escape(w)), text, re.IGNORECASE)]


def is_incomplete(text: str) -> bool:
    """Return True if a caption has fewer than three words, or ends as if cut off."""
    return len(text.split()) < 3 or bool(CUT_OFF.search(text.strip()))
