"""Decode text files of unknown encoding, and decide whether the lines of a text are one caption or several."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from helpers.core.errors import RunError

BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# The non-ASCII characters of Western European text in Windows-1252. Other 8-bit encodings decoded as Windows-1252 give
# others: é of Mac Roman becomes Ž, the Polish ł becomes ³, the Turkish ş becomes þ.
WESTERN = re.compile(
    r"[ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜàáâãäåæçèéêëìíîïñòóôõöøùúûüßœŒ‘’“”„–—…•€£°´·×½«»©®™\xa0]"
)
MISPLACED = re.compile(r"[a-zß-öø-ÿ][À-ÖØ-Þ]")  # a capital in the middle of a word
MAX_WESTERN_SHARE = 0.4  # of the letters
MIN_WRAP = 50  # characters after which an editor breaks a line
CUT_OFF = re.compile(
    r"\b(?:a|an|and|as|at|by|for|from|her|his|in|into|is|its|near|of|on|or|over|the|their|to|under|wearing|"
    r"which|while|with)$",
    re.IGNORECASE,
)
NEW_CAPTION = re.compile(r"[A-Z\d]|(?:an?|the|one|two|three|several|some|this|there)\b")
GOES_ON = re.compile(
    r"(?:and|at|behind|beside|between|but|by|from|holding|in|into|near|next to|of|on|or|over|that|through|to|"
    r"under|wearing|which|while|who|with)\b"
)


def one_line(text: str) -> str:
    """Return a text on one line in Unicode's NFC, with white space collapsed and lone surrogates as `?`."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(unicodedata.normalize("NFC", text).replace("\x00", " ").split())


def fold(name: str) -> str:
    """Return a name casefolded and in Unicode's NFC, for comparisons that ignore case and Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


def read_text(path: Path) -> str:
    """Read a Unicode or Windows-1252 text file as one line. Raises RunError for any other encoding."""
    content = path.read_bytes()
    text = decode(content)
    if text is None:
        (text,) = decode_western([content]) or [None]
    if text is None:
        raise RunError(f"{path} is not UTF-8 text: save it again as UTF-8")
    return one_line(text)


def decode(content: bytes) -> str | None:
    """Decode bytes as UTF-8, UTF-16 or UTF-32, or return None if the bytes are in none of the three."""
    name = next((name for bom, name in BOMS if content.startswith(bom)), None)
    if name is None and content[:200].count(0) * 3 > len(content[:200]):
        name = "utf-16-le" if content[1:2] == b"\x00" else "utf-16-be"
    try:
        return content.decode(name or "utf-8")
    except UnicodeDecodeError:
        return None


def decode_western(contents: Iterable[bytes]) -> list[str] | None:
    """Decode texts as Windows-1252, or return None if their characters suggest another encoding."""
    try:
        texts = [content.decode("cp1252") for content in contents]
    except UnicodeDecodeError:
        return None
    text = "\n".join(texts)
    beyond = [c for c in text if c > "\x7f"]
    letters = sum(c.isalpha() for c in text)
    if (
        not all(WESTERN.match(c) for c in beyond)
        or MISPLACED.search(text)
        or sum(c.isalpha() for c in beyond) > MAX_WESTERN_SHARE * letters
    ):
        return None
    return texts


def alternatives(text: str) -> list[str]:
    """Split a text into captions, one per line, as kohya's sd-scripts and OneTrainer do. Wrapped lines are joined."""
    lines = [line for line in map(one_line, text.splitlines()) if line]
    return [" ".join(lines)] if len(lines) > 1 and _is_wrapped(lines) else lines


def _is_wrapped(lines: list[str]) -> bool:
    """Return True if a line ends in mid-phrase, or the next line continues a long line."""
    return any(
        CUT_OFF.search(line)
        or (line.endswith(",") and not NEW_CAPTION.match(after))
        or (len(line) >= MIN_WRAP and GOES_ON.match(after))
        for line, after in zip(lines, lines[1:], strict=False)
    )
