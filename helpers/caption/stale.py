"""Find stale captions, which were made with settings that have changed since."""

import hashlib
import json
from collections import Counter
from contextlib import suppress
from typing import Any

from helpers.caption.claude.prompt import STYLE_GUIDE, example_pairs, split_words
from helpers.config import CaptionConfig
from helpers.config.choices import CAPTIONERS
from helpers.core.errors import RunError
from helpers.core.files import sha256
from helpers.core.records import Caption, append_row, latest, read_rows
from helpers.core.run import Run


def model_name(config: CaptionConfig) -> str:
    """Return the name of the model that the captioner uses, or "" for a captioner without a model."""
    setting = CAPTIONERS[config.captioner].model
    return getattr(config, setting) if setting else ""


def made_with(config: CaptionConfig, run: Run) -> dict[str, str]:
    """Return Claude's settings that shape a caption, as {name: value or hash}, or {} for another captioner."""
    if config.captioner != "claude":
        return {}
    return {
        "style_guide": _hash(config.style_guide.strip() or STYLE_GUIDE),
        "vocabulary": _hash(config.vocabulary.strip()),
        "banned_words": _hash(split_words(config.banned_words)),
        "examples": _hash(_examples(config, run)),
        "max_caption_words": str(config.max_caption_words),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _examples(config: CaptionConfig, run: Run) -> list[Any]:
    """Return the example pairs as (SHA-256 of the image, caption), or the setting itself if an example is missing."""
    with suppress(RunError, OSError):  # a missing example is reported when the prompt is built
        return [(sha256(path), caption) for path, caption in example_pairs(config, run)]
    return list(config.examples)


def find_stale(config: CaptionConfig, run: Run) -> dict[str, list[str]]:
    """Return {file name: names of the settings that have changed} of the images with a stale caption.

    Captions by a person, images refused by this captioner and model, and with captioner=sidecar images without a .txt
    are left out. Rows of older versions without settings are compared by captioner and model only.
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
        if row.captioner != config.captioner:
            changed = ["captioner"]
        else:
            changed = ["model"] if row.model != model else []
            changed += [k for k, v in row.made_with.items() if settings.get(k, v) != v]
        text = run.sidecar(name)
        has_text = text.is_file() and text.stat().st_size > 0
        is_possible = config.captioner != "sidecar" or has_text
        if changed and row.status == "ok" and name not in refused and is_possible:
            stale[name] = changed
    return stale


def stale_note(config: CaptionConfig, run: Run) -> str:
    """Return a line that says how many captions are stale and how to replace them, or "" if none is stale."""
    run.check_settings(config)
    stale = find_stale(config, run)
    if not stale:
        return ""
    counts = Counter(setting for changed in stale.values() for setting in changed)
    settings = ", ".join(f"{setting} ({count})" for setting, count in counts.most_common())
    note = f"{len(stale)} captions were made with another {settings}"
    if config.recaption:
        return f"{note}: recaption replaces them, at the price below"
    return (
        f'{note}: they are kept. more={{"recaption": True}} replaces them, at a price shown before'
    )


def restore_caption(run: Run, before: Caption | None, row: Caption) -> None:
    """Append the previous caption as a new row if a person edited it, or the new row has no caption.

    The old row alone has the cost. A caption from a .txt that was deleted or emptied is not restored.
    """
    if before is None or not before.is_usable or (row.is_usable and before.status != "edited"):
        return
    if not before.captioner == row.captioner == "sidecar":
        kept = (before.file_name, before.caption, before.status, before.captioner, before.model)
        append_row(run.captions, Caption(*kept, made_with=before.made_with))
