"""Captions that other settings made: told, and made again by `recaption`. And words that no failure may take away."""

import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

from helpers.caption.claude.prompt import STYLE_GUIDE, example_pairs, listed
from helpers.config import CaptionConfig
from helpers.config.choices import CAPTIONERS
from helpers.core.errors import RunError
from helpers.core.files import sha256
from helpers.core.records import Caption, latest, read_rows
from helpers.core.run import Run


def model_name(config: CaptionConfig) -> str:
    """The model that a captioner's rows bear; "" of one that has none."""
    setting = CAPTIONERS[config.captioner].model
    return getattr(config, setting) if setting else ""


def made_with(config: CaptionConfig, run: Run) -> dict[str, str]:
    """What shapes Claude's words beside the model: each setting's hash, or the number that it is."""
    if config.captioner != "claude":
        return {}
    return {
        "style_guide": _hash(config.style_guide.strip() or STYLE_GUIDE),
        "vocabulary": _hash(config.vocabulary.strip()),
        "banned_words": _hash(listed(config.banned_words)),
        "examples": _hash(_examples(config, run)),
        "max_caption_words": str(config.max_caption_words),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _examples(config: CaptionConfig, run: Run) -> list[Any]:
    """The example pairs by their content, so that a mended caption of one counts as another example."""
    with suppress(RunError, OSError):  # one that is not there is told where it is sent
        return [(sha256(path), caption) for path, caption in example_pairs(config, run)]
    return list(config.examples)


def find_stale(config: CaptionConfig, run: Run) -> dict[str, list[str]]:
    """By file name, the settings that were others when a caption was made. A person's words are never stale.

    Rows of versions that kept no settings are compared by captioner and model alone. A .txt stands for itself, so
    with captioner=sidecar only an image that has one has a stale caption. What refused under these settings would
    refuse again.
    """
    rows = read_rows(run.captions, Caption)
    model, settings = model_name(config), made_with(config, run)
    refused = {
        row.file_name
        for row in rows
        if row.status == "refused" and (row.captioner, row.model) == (config.captioner, model)
    }
    stale = {}
    for name, row in latest(rows).items():
        changed = _changed(row, config.captioner, model, settings)
        if (
            row.status == "ok"
            and changed
            and name not in refused
            and _can_be_made(config, run, row)
        ):
            stale[name] = changed
    return stale


def _changed(row: Caption, captioner: str, model: str, settings: dict[str, str]) -> list[str]:
    if row.captioner != captioner:
        return ["captioner"]
    changed = ["model"] if row.model != model else []
    return changed + [k for k, v in row.made_with.items() if settings.get(k, v) != v]


def _can_be_made(config: CaptionConfig, run: Run, row: Caption) -> bool:
    if config.captioner != "sidecar":
        return True
    text = run.sidecar(row.file_name)
    return text.is_file() and text.stat().st_size > 0


def stale_note(config: CaptionConfig, run: Run) -> str:
    """How many captions other settings made, and what to do about it, in a line; "" if none."""
    run.check_settings(config)
    stale = find_stale(config, run)
    if not stale:
        return ""
    counts = Counter(setting for changed in stale.values() for setting in changed)
    listed = ", ".join(f"{setting} ({count})" for setting, count in counts.most_common())
    note = f"{len(stale)} captions were made with another {listed}"
    if config.recaption:
        return f"{note}: recaption has them made again, at the price below"
    return (
        f'{note}: they stay. more={{"recaption": True}} has them made again, at a price told before'
    )


def standing_words(before: Caption | None, row: Caption) -> Caption | None:
    """The words that an image had and that a new row must not take from it: a person's, or any if it has none."""
    if before is None or not before.is_usable or (row.is_usable and before.status != "edited"):
        return None
    free = {"input_tokens": 0, "output_tokens": 0, "cache_read_tokens": 0, "cache_write_tokens": 0}
    return replace(before, **free, cost_usd=0.0, request="")
