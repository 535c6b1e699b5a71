"""Captions in a metadata.csv beside the images: `file_name,text`, or `prompt` for `text` as older sets have it.

Its names are compared with the images that were found, and never opened.
"""

import csv
import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from helpers.errors import RunError
from helpers.scrape.found import Found

METADATA = "metadata.csv"
TEXTS = (
    "text",
    "prompt",
)  # columns that hold the caption; the second says that names are SHORTCODE_INDEX
SHORTCODE_INDEX = re.compile(r"([A-Za-z0-9_-]{3,64})_(\d{1,2})", re.ASCII)
log = logging.getLogger(__name__)


def with_captions(root: Path, found: list[Found]) -> list[Found]:
    """The images with the captions of every metadata.csv at or below `root`; a .txt beside an image goes before.

    Raises RunError for a metadata.csv that is not UTF-8 or has no such columns.
    """
    captions: dict[str, str] = {}
    posts: dict[str, tuple[str, int]] = {}
    for path in sorted(root.rglob(METADATA)):
        column, rows = _read(path)
        folder = path.parent.relative_to(root)
        captions |= {(folder / name).as_posix(): text for name, text in rows.items()}
        if column == "prompt":
            posts |= {(folder / name).as_posix(): post for name in rows if (post := _post(name))}
    _tell_missing(root, captions.keys() - {item.name for item in found})
    found = [
        replace(item, caption=captions[item.name])
        if item.caption is None and captions.get(item.name)
        else item
        for item in found
    ]
    return _in_posts(found, posts)


def _in_posts(found: list[Found], posts: dict[str, tuple[str, int]]) -> list[Found]:
    """The images with the posts that their names tell, but for two that would then have one name."""
    told = [
        replace(item, shortcode=posts[item.name][0], index=posts[item.name][1])
        if item.name in posts
        else item
        for item in found
    ]
    count = Counter(item.stem.lower() for item in told)
    return [
        new if count[new.stem.lower()] == 1 else old for old, new in zip(found, told, strict=True)
    ]


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """The column that holds the captions, and each file's caption on one line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} is no CSV in UTF-8 ({error}): save it again as such") from None
    column = next((name for name in TEXTS if name in columns), None)
    if column is None or "file_name" not in columns:
        raise RunError(
            f"{path} has the columns {', '.join(columns) or 'none'}: name them file_name and text"
        )
    named = [row for row in rows if row["file_name"]]
    return column, {row["file_name"]: " ".join((row[column] or "").split()) for row in named}


def _post(name: str) -> tuple[str, int] | None:
    match = SHORTCODE_INDEX.fullmatch(Path(name).stem)
    return (match[1], int(match[2])) if match and Path(name).name == name else None


def _tell_missing(root: Path, names: set[str]) -> None:
    if names:
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        log.warning(
            "%s captions %d images that are not in %s: %s", METADATA, len(names), root, some
        )
