"""Write the dataset card, README.md, from the other files in the dataset's folder."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import DatasetCardData

from helpers.core.files import replacing_file, write_text
from helpers.dataset.dataset_files import (
    CARD,
    SHEET,
    Record,
    content_hash,
    may_be_shown,
    read_about,
    read_records,
)
from helpers.figures.pictures import contact_sheet

SETTING = {  # of each reason to leave an image out
    "too small": "min_side_px",
    "extreme aspect": "max_aspect",
    "too dark": "min_brightness",
    "mostly text": "max_text_share",
    "too blurry": "min_sharpness",
    "odd one out": "max_oddness",
    "near copy": "max_hash_bits",
    "edited copy": "min_likeness",
}
TEXT = """---
{header}
---

# {run}: {count} images with captions

Prepared for fine-tuning a text-to-image model, by annalaura-diffusion.
{sheet}
| | |
|---|---|
| Accounts | {accounts} |
| Permission | {permission} |
| Published | {dates} |
| Images | {train} to train on, {validation} held out, of {posts} posts; a post is on one side as a whole |
| Captions | by {captioners}, each ending in <code>{suffix}</code> |
| Pixels | {pixels} |
| Left out | {left_out} |
| Split | share {validation_share:g}, seed {seed}, by post and cluster of copies |
| SHA-256 of images and texts | <code>{hash}</code> |

Images are whole; cropping is left to training. `provenance.jsonl` says where each one comes from, `manifest.json`
holds the SHA-256 of every file. Load it with `datasets.load_dataset("imagefolder", data_dir="path/to/this/folder")`.

Take care: whoever trains on this learns one person's hand. It is meant for study, with the artist's permission
where the work is not one's own, and never to pass generated images off as theirs. A post can be taken down by
`python -m helpers.dataset.takedown RUN SHORTCODE`.
"""


def write_card(folder: Path) -> None:
    """Write README.md, and contact_sheet.jpg if each image's permission allows showing the image."""
    records = read_records(folder)
    if may_be_shown(records):
        images = [folder / r.split / r.file_name for r in records]
        with replacing_file(folder / SHEET) as tmp_path:
            contact_sheet(images).save(tmp_path, quality=90)
    write_text(folder / CARD, card(folder, records))


def card(folder: Path, records: Sequence[Record]) -> str:
    """Return the dataset card as Markdown with a YAML header for the Hub; untrusted text is escaped."""
    about, tasks = read_about(folder), ["text-to-image"]
    header = DatasetCardData(language="en", task_categories=tasks, pretty_name=about["run"])
    sides = Counter(record.split for record in records)
    return TEXT.format(
        header=header.to_yaml(),
        run=about["run"],
        count=len(records),
        sheet=f"\n![The images]({SHEET})\n" if may_be_shown(records) else "",
        accounts=_listed(r.account for r in records) or "not recorded",
        permission=_listed(r.permission for r in records) or "not recorded",
        dates=_span(r.taken_at for r in records) or "not recorded",
        train=sides["train"],
        validation=sides["validation"],
        posts=len({record.shortcode for record in records}),
        captioners=_listed(f"{r.captioner} ({r.model})" if r.model else r.captioner for r in records),
        suffix=escaped(about["settings"]["suffix"]),
        pixels=_pixels(about.get("changed")),
        left_out=_left_out(about["left_out"], about["settings"]) or "none",
        validation_share=about["settings"]["validation_share"],
        seed=about["settings"]["seed"],
        hash=content_hash(folder),
    )  # fmt: skip


def card_words(folder: Path) -> str:
    """Return the dataset card without YAML header and contact sheet, for a notebook."""
    _, _, words = (folder / CARD).read_text(encoding="utf-8").split("---\n", 2)
    return "\n".join(line for line in words.splitlines() if not line.startswith("!["))


def escaped(text: str) -> str:
    """Return a text escaped for Markdown and HTML."""
    return re.sub(r"[^\w\s.,:;@/-]|_", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))


def _listed(values: Iterable[str]) -> str:
    return ", ".join(escaped(value) for value in sorted(set(values) - {""}))


def _span(dates: Iterable[str]) -> str:
    days = sorted(escaped(date[:10]) for date in dates if date)
    return f"{days[0]} to {days[-1]}" if days else ""


def _pixels(changed: dict[str, int] | None) -> str:
    if changed is None:  # by an older version
        return "in files as they were published, with what these hold beside their pixels"
    counts = "".join(f"; {count} {what}" for what, count in sorted(changed.items()))
    return (
        "upright, in sRGB, without EXIF, positions, cameras, thumbnails or other metadata" + counts
    )


def _left_out(counts: dict[str, int], settings: dict[str, object]) -> str:
    return "; ".join(
        f"{count} {kind}" + (f" ({SETTING[kind]} {settings[SETTING[kind]]})" if kind in SETTING else "")
        for kind, count in counts.items()
    )  # fmt: skip
