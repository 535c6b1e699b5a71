"""Read and write the rows that stages exchange: posts, captions, rejections, metadata.csv and the training log."""

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
NO_BREAK_SPACE = "\u00a0"  # ends texts in metadata.csv that would be read as a number or null


@dataclass(frozen=True)
class Post:
    """A line of posts.jsonl: an image and its source."""

    file_name: str
    shortcode: str
    index: int  # within a carousel, from 1
    account: str
    taken_at: str  # ISO 8601, or empty if unknown
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
    source_name: str = ""  # its name at the source
    source_id: str = ""  # an id of its content at the source: unchanged, the picture is the same
    gone: str = ""  # the day on which it was first missing from the source

    @property
    def stem(self) -> str:
        return self.file_name.rpartition(".")[0]


@dataclass(frozen=True)
class Caption:
    """A line of captions.jsonl: an image's caption, by a captioner or a person. The last line counts; costs add up."""

    file_name: str
    caption: str
    status: str  # ok, edited, refused, or `failed: why`
    captioner: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: float = 0.0  # of this answer; one that never came back counts with its highest price
    request: str = ""  # its custom_id in a message batch
    # the settings that made it, by name: a number, or a hash of a text
    made_with: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_usable(self) -> bool:
        return self.status in ("ok", "edited")


@dataclass(frozen=True)
class Rejection:
    """A line of rejected.jsonl: an image that a stage left out, and the reason. The image file stays."""

    file_name: str
    stage: str
    reason: str
    kind: str = ""  # 03's word for the reason, without its figures


def append_row(path: Path, row: object) -> None:
    append_rows(path, [row])


def append_rows(path: Path, rows: Sequence[object]) -> None:
    """Append rows to a JSON Lines file in one write, with secrets redacted. After a kill the first rows remain."""
    if rows:
        text = "\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
        text = redact(text)  # errors may quote a request with its key
        append_line(path, text.encode("utf-8", "replace").decode())  # half an emoji is not UTF-8


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read a JSON Lines file as dataclass rows of type `kind`, or [] if the file is missing.

    A last line that a kill cut off is left out. Raises RunError for any other line that is not such a row.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            values = json.loads(line)
            rows.append(kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values}))
        except (ValueError, TypeError) as error:
            raise RunError(
                f"{path} line {number} is not a {kind.__name__} ({error}): fix or delete that line"
            ) from error
    return rows


def latest(rows: list[Row]) -> dict[str, Row]:
    """Return each file name's last row as {file_name: row}, in the order of first appearance."""
    return {row.file_name: row for row in rows}


def present(path: Path) -> list[Post]:
    """Return the last row of each image in posts.jsonl, without images that have vanished from the source."""
    return [post for post in latest(read_rows(path, Post)).values() if not post.gone]


def left_out(posts: Path, rejected: Path) -> list[Rejection]:
    """Return each image's last rejection by each stage. 01's rejections of images in posts.jsonl do not count."""
    taken = {name for row in read_rows(posts, Post) for name in (row.stem, row.source_name)}
    rows = {(row.stage, row.file_name): row for row in read_rows(rejected, Rejection)}
    return [row for row in rows.values() if row.stage != "scrape" or row.file_name not in taken]


def caption_costs(path: Path) -> tuple[float, int]:
    """Return the total (USD, tokens) of all lines in captions.jsonl, including refused and replaced captions."""
    rows = read_rows(path, Caption)
    kinds = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    tokens = sum(getattr(row, kind) for row in rows for kind in kinds)
    return sum(row.cost_usd for row in rows), tokens


def rewrite(path: Path, keep: Callable[[dict], bool], rows: Sequence[object] = ()) -> None:
    """Rewrite a JSON Lines file atomically, with the lines that `keep` accepts, and then `rows`."""
    old = path.read_bytes() if path.is_file() else b""
    kept = [line for line in old.split(b"\n")[:-1] if line and keep(json.loads(line))]
    kept += [json.dumps(asdict(row), ensure_ascii=False).encode() for row in rows]
    new = b"".join(line + b"\n" for line in kept)
    if new != old:
        write_bytes(path, new)


def read_metadata(path: Path) -> list[tuple[str, str]]:
    """Read the (file_name, text) rows of a metadata.csv. Raises RunError for a missing column or a name with a path."""
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
    """Read the rows of train_log.jsonl, skipping truncated and damaged lines."""
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows


def log_lines(rows: Sequence[dict[str, float]]) -> str:
    """Format rows as the text of train_log.jsonl, a JSON object per line."""
    return "".join(json.dumps(row) + "\n" for row in rows)
