"""The rows that cross a border between two stages: one JSON object a line, keyed by `file_name`."""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from helpers.core.errors import RunError
from helpers.core.files import append_line, write_bytes
from helpers.core.redact import redact

Row = TypeVar("Row")
NO_BREAK_SPACE = "\u00a0"  # ends a text in metadata.csv that would be read as a number or as none


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
    size_bytes: int = 0
    post_caption: str = ""  # as published; the caption to train on is 02's
    alt_text: str = ""
    likes: int | None = None
    permission_changed: str = ""  # the day on which it was corrected, ISO 8601
    source_name: str = ""  # as the source calls it
    source_id: str = ""  # while the source says the same, it has the same picture
    gone: str = ""  # the day since which the source has it no more

    @property
    def stem(self) -> str:
        return self.file_name.rpartition(".")[0]


@dataclass(frozen=True)
class Caption:
    """A line of captions.jsonl; the last line of a file_name counts, and every line's cost."""

    file_name: str
    caption: str
    status: str  # ok, edited, refused, or `failed: why`
    captioner: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: float = 0.0  # of this answer; one that never came back counts at its most
    request: str = ""  # our id of it in a batch
    # the settings that shaped it, by name: a number, or a hash of a text
    made_with: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_usable(self) -> bool:
        return self.status in ("ok", "edited")


@dataclass(frozen=True)
class Rejection:
    """A line of rejected.jsonl: an image that a stage left out, and why. The image itself stays."""

    file_name: str
    stage: str
    reason: str
    kind: str = ""  # 03's word for the reason, without its figures


def append_row(path: Path, row: object) -> None:
    append_rows(path, [row])


def append_rows(path: Path, rows: Sequence[object]) -> None:
    """Add rows by one write; a kill in it leaves the first of them."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in rows]
    if lines:
        text = redact("\n".join(lines))  # errors may echo what was sent
        append_line(path, text.encode("utf-8", "replace").decode())  # half an emoji is no UTF-8


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


def present(path: Path) -> list[Post]:
    """The images of posts.jsonl that the source still has, each once."""
    return [post for post in latest(read_rows(path, Post)).values() if not post.gone]


def left_out(posts: Path, rejected: Path) -> list[Rejection]:
    """What 01 and 03 leave out, each with its last reason; what 01 refused once and has taken since is none of it."""
    taken = {name for row in read_rows(posts, Post) for name in (row.stem, row.source_name)}
    rows = {(row.stage, row.file_name): row for row in read_rows(rejected, Rejection)}
    return [row for row in rows.values() if row.stage != "scrape" or row.file_name not in taken]


def caption_costs(path: Path) -> tuple[float, int]:
    """(USD, tokens) of all answers in captions.jsonl, those that were of no use and those replaced since included."""
    rows = read_rows(path, Caption)
    tokens = sum(
        row.input_tokens + row.output_tokens + row.cache_read_tokens + row.cache_write_tokens
        for row in rows
    )
    return sum(row.cost_usd for row in rows), tokens


def reject(path: Path, row: Rejection) -> None:
    """Add a rejection, once."""
    if row not in read_rows(path, Rejection):
        append_row(path, row)


def rewrite(path: Path, keep: Callable[[dict], bool], rows: Sequence[object] = ()) -> None:
    """Keep the lines whose values `keep` accepts, as they are, and add rows; old or new, never a half."""
    old = path.read_bytes() if path.is_file() else b""
    whole = old.split(b"\n")[:-1]
    kept = [line for line in whole if line and keep(json.loads(line))]
    kept += [json.dumps(asdict(row), ensure_ascii=False).encode() for row in rows]
    new = b"".join(line + b"\n" for line in kept)
    if new != old:
        write_bytes(path, new)


def read_metadata(path: Path) -> list[tuple[str, str]]:
    """The (file_name, text) rows of a split's metadata.csv.

    Raises RunError if it has no such columns, or a file name that leads out of its folder.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file_name", "text"} <= rows[0].keys():
        raise RunError(f"{path} has no rows of file_name,text: run 03_dataset again")
    for row in rows:
        if Path(row["file_name"]).name != row["file_name"]:
            raise RunError(
                f"{path} names {row['file_name']!r}, which is not in its folder: run 03_dataset again"
            )
    return [(row["file_name"], row["text"].removesuffix(NO_BREAK_SPACE)) for row in rows]


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of train_log.jsonl; what is none, such as a line cut by a kill or damaged since, is left out."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [row for row in map(_log_row, lines) if row is not None]


def _log_row(line: bytes) -> dict[str, float] | None:
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and type(row.get("step")) is int:
            return row
    return None


def log_lines(rows: Sequence[dict[str, float]]) -> str:
    """What train_log.jsonl holds of these rows."""
    return "".join(json.dumps(row) + "\n" for row in rows)
