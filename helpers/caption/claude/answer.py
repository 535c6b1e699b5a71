"""Validate Claude's answers: only JSON with one caption in plain text is accepted."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_CHARACTERS_PER_WORD = 14  # on average, with its space
NOT_CAPTION_TEXT = re.compile(  # markup, code, addresses and file names have no place in a caption
    r"[<>{}\[\]|\\`@]|https?:|\bwww\.|\.(?:jpe?g|png|webp|gif|txt|html?|com|org|net)\b",
    re.IGNORECASE,
)


def read_answer(body: Any, max_words: int) -> tuple[str, str]:
    """Return (caption, status) of a Messages API response; status is `ok`, `refused` or `failed: answer ...`."""
    if not isinstance(body, Mapping) or not isinstance(body.get("content"), list):
        return "", "failed: answer is no message"
    reason = body.get("stop_reason")
    if reason == "refusal":
        return "", "refused"
    if reason not in ("end_turn", "stop_sequence"):
        return "", f"failed: answer stopped at {str(reason)[:40]}"
    blocks = [block for block in body["content"] if isinstance(block, Mapping)]
    texts = [block.get("text") for block in blocks if block.get("type") == "text"]
    try:
        answer = json.loads("".join(text for text in texts if isinstance(text, str)))
    except (ValueError, RecursionError):
        return "", "failed: answer is no JSON"
    if not isinstance(answer, dict) or answer.keys() != {"caption"}:
        return "", "failed: answer is not one caption and nothing else"
    caption = answer["caption"]
    if not isinstance(caption, str):
        return "", "failed: answer's caption is no text"
    caption = " ".join(caption.split())
    fault = find_fault(caption, max_words)
    return ("", f"failed: answer {fault}") if fault else (caption, "ok")


def find_fault(caption: str, max_words: int) -> str:
    """Return the reason why a text cannot be a caption, or "" if it can."""
    words = len(caption.split())
    if not caption:
        return "is empty"
    if words > max_words or len(caption) > max_words * MAX_CHARACTERS_PER_WORD:
        return f"has {words} words and {len(caption)} characters, the limit is {max_words} words"
    if any(unicodedata.category(character)[0] == "C" for character in caption):
        return "has control characters"
    if found := NOT_CAPTION_TEXT.search(caption):
        return f"has {found.group()!r} in it"
    if not caption.lstrip("\"'“‘«").strip()[:1].isalnum():
        return f"begins with {caption[0]!r}"
    return ""
