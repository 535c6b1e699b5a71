"""What a person should look at: captions too long for CLIP, with words that do not belong there, or not whole."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from helpers.caption.claude.prompt import listed
from helpers.config import CaptionConfig, DatasetConfig
from helpers.core.files import read_json
from helpers.core.records import Caption
from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.host.colab import on_colab
from helpers.models.tokens import base_model_of, token_limit

TOO_LONG = "over"  # begins the name of what no person's yes can mend
CLIP = "openai/clip-vit-large-patch14"  # whose tokens Stable Diffusion's are
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
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+")


def problems_of(
    config: CaptionConfig, run: Run, rows: Iterable[Caption]
) -> dict[str, list[Caption]]:
    """Captions by what is the matter with them."""
    rows = list(rows)
    usable = [row for row in rows if row.is_usable]
    same = Counter(_plain(row.caption) for row in usable)
    suffix = suffix_of(config, run)
    banned = listed(config.banned_words)
    style = [word for word in style_words(suffix) if word not in banned]
    base, own = base_model_of(run), config.clip_tokenizer
    limit = token_limit(own or base)
    count, note = token_counter(own or (base if _tokenizer_in(base) else CLIP))

    def having(matches: Callable[[str], object]) -> list[Caption]:
        return [row for row in usable if matches(strip_suffix(row.caption, suffix))]

    return {
        "no caption": [row for row in rows if not row.is_usable],
        "banned word": having(lambda text: words_in(text, banned)),
        "style word": having(lambda text: words_in(text, style)),
        "same words as another": having(lambda text: same[_plain(text)] > 1),
        f"{TOO_LONG} {limit} CLIP tokens with the suffix{note}": having(
            lambda text: count(text + suffix) > limit
        ),
        "incomplete": having(is_incomplete),
        "lettering": having(LETTERING.search),
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().rstrip(".").split())


def suffix_of(config: CaptionConfig, run: Run) -> str:
    """The words that end each caption of the dataset: given here, or 03's own."""
    if config.suffix:
        return config.suffix
    kept = run.config("dataset")
    return read_json(kept)["suffix"] if kept.is_file() else DatasetConfig.suffix


def style_words(suffix: str) -> list[str]:
    """Words that name the style: those of the suffix, and the names of media."""
    own = [word for word in re.findall(r"[\w'-]+", suffix.lower()) if word not in SMALL_WORDS]
    return list(dict.fromkeys(own + listed(MEDIA)))


def words_in(text: str, words: Iterable[str]) -> list[str]:
    """Those of `words` that a text has, whole or in the plural, in any case."""
    return [
        word
        for word in words
        if re.search(rf"(?<!\w){re.escape(word)}(?:s|es)?(?!\w)", text, re.IGNORECASE)
    ]


def is_incomplete(text: str) -> bool:
    """Whether a caption stops in the middle, or is hardly one: fewer than three words."""
    return len(text.split()) < 3 or bool(CUT_OFF.search(text.strip()))


@cache
def token_counter(tokenizer: str) -> tuple[Callable[[str], int], str]:
    """How to count CLIP's tokens, begin and end included, and a note where the count is an estimate.

    A faithful count takes CLIP's list of merges: it is read from `tokenizer`, a folder or a hub id (from the
    hub's cache, on Colab from the hub: 2 MB). Where it is not to be had, tokens are estimated by words' lengths.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(tokenizer)
    if path is None:
        return estimated_tokens, " (estimated)"
    clip = Tokenizer.from_file(str(path))
    clip.no_padding()
    clip.no_truncation()  # else the file may cut at 77, and all captions would fit
    return lambda text: len(clip.encode(text).ids), ""


def _tokenizer_file(tokenizer: str) -> Path | None:
    if path := _tokenizer_in(tokenizer):
        return path
    from huggingface_hub import hf_hub_download

    try:
        # a machine without a network would try for half a minute
        path = hf_hub_download(tokenizer, "tokenizer.json", local_files_only=not on_colab())
        return Path(path)
    except (OSError, ValueError):  # no network, no such model
        return None


def _tokenizer_in(folder: str) -> Path | None:
    """The file of a tokenizer's folder, or of a pipeline's."""
    files = (Path(folder) / name for name in ("tokenizer.json", "tokenizer/tokenizer.json"))
    return next((path for path in files if path.is_file()), None)


def estimated_tokens(text: str) -> int:
    """CLIP's tokens by the length of words: 1 to six letters, then 1 more for each four begun.

    Measured against CLIP's own merges on 3,168 lines of English: 10% too many on average, too few in a
    fifth of the lines, by 27% at the worst hundredth; letters beyond ASCII count by their bytes.
    """
    lengths = (len(word.encode()) for word in WORD.findall(text.lower()))
    return 2 + sum(1 + max(0, -(-(length - 6) // 4)) for length in lengths)
