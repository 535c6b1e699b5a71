"""The rows that cross a border between two stages: one JSON object a line, keyed by `file_name`."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

from helpers.errors import RunError
from helpers.store import append_line

Row = TypeVar("Row")


@dataclass(frozen=True)
class Post:
    """A line of posts.jsonl: one image, and where it came from."""

    file_name: str
    shortcode: str
    index: int  # within a carousel, from 1
    account: str
    taken_at: str  # ISO 8601, or empty where nobody knows
    url: str
    width_px: int
    height_px: int
    sha256: str
    permission: str


@dataclass(frozen=True)
class Caption:
    """A line of captions.jsonl; the last line of a file_name counts."""

    file_name: str
    caption: str
    status: str  # ok, edited, refused, or `failed: why`
    captioner: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def is_usable(self) -> bool:
        return self.status in ("ok", "edited")


@dataclass(frozen=True)
class Rejection:
    """A line of rejected.jsonl: an image that a stage left out, and why. The image itself stays."""

    file_name: str
    stage: str
    reason: str


def append_row(path: Path, row: object) -> None:
    append_line(path, json.dumps(asdict(row), ensure_ascii=False))


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file in order, none if it is not there; a last line cut by a kill is left out.

    Raises RunError for a line that is no such row.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse(path, number, line, kind) for number, line in enumerate(lines, 1) if line]


def _parse(path: Path, number: int, line: bytes, kind: type[Row]) -> Row:
    try:
        values = json.loads(line)
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{path} line {number} is no {kind.__name__} ({error}): mend or delete that line"
        ) from error


def latest(rows: list[Row]) -> dict[str, Row]:
    """The last row of each file_name, in the order in which the names first came."""
    return {row.file_name: row for row in rows}


def reject(path: Path, row: Rejection) -> None:
    """Add a rejection, once."""
    if row not in read_rows(path, Rejection):
        append_row(path, row)
