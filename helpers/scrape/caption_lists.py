"""Parse files that list captions by image name: CSV with or without a header, JSON, JSON lines and Parquet.

A file counts as a list if one of its columns names images of the folder. The paths in that column are compared with the
paths of the images and never opened.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from helpers.core.text import one_line

DELIMITERS = ",\t;|"
# columns that hold captions, in order of precedence; then any other with "caption" or "prompt" in its name
COLUMNS = (
    "text",
    "caption",
    "captions",
    "prompt",
    "description",
    "sentence",
    "sentences",
    "comment",
    "raw",
    "alt_text",
    "alt",
    "tags",
)
NOT_CAPTIONS = re.compile(r"negative|_id\b|_ids\b|number|count|length|score|lang", re.IGNORECASE)

Record = dict[str, Any]
Finder = Callable[[str], list[Path]]  # the images that a name refers to; none if ambiguous


def rank(column: str) -> int | None:
    """Return a column's precedence as a source of captions, 0 the highest, or None if its name suggests no captions."""
    name = column.strip().lower()
    if name in COLUMNS:
        return COLUMNS.index(name)
    is_one = ("caption" in name or "prompt" in name) and not NOT_CAPTIONS.search(name)
    return len(COLUMNS) if is_one else None


def captions_in(value: Any) -> list[str]:
    """Return the non-empty captions in a table cell, which holds a string or a list of strings."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for v in values if isinstance(v, str) and (text := one_line(v))]


def read_records(path: Path, text: str, find_images: Finder) -> tuple[list[Record], str] | None:
    """Return the rows of a CSV, JSON or JSON lines text and its column of image names, or None if no column has any."""
    match path.suffix.lower():
        case ".json":
            records = _records_from_json(_parse_json(text), find_images)
        case ".jsonl" | ".ndjson":
            records = [_parse_json(line) for line in text.splitlines() if line.strip()]
        case _:
            return _records_from_text(
                text, find_images, must_match_half=path.suffix.lower() == ".txt"
            )
    records = [record for record in records if isinstance(record, dict)]
    column = _find_name_column(records, find_images)
    return (records, column) if column is not None else None


def read_parquet(path: Path, find_images: Finder) -> tuple[list[Record], str] | None:
    """Return the rows of a Parquet file and its column of image names, or None if no column has any.

    Only columns of strings and of lists of strings are read.
    """
    import pyarrow as arrow
    from pyarrow import parquet

    def is_text(kind: arrow.DataType) -> bool:
        if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
            kind = kind.value_type
        return arrow.types.is_string(kind) or arrow.types.is_large_string(kind)

    schema = parquet.read_schema(path)
    names = [field.name for field in schema if is_text(field.type)]
    records = parquet.read_table(path, columns=names).to_pylist()
    column = _find_name_column(records, find_images)
    return (records, column) if column is not None else None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_object(text: str) -> Record:
    """Return the JSON object in `text`, or {} if `text` is anything else."""
    value = _parse_json(text)
    return value if isinstance(value, dict) else {}


def _records_from_json(value: Any, find_images: Finder) -> list[Any]:
    """Return the rows in parsed JSON: a list, a dict by image name, COCO, or a list in a dict; [] for other JSON."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return []
    images, notes = value.get("images"), value.get("annotations")
    if _are_records(images) and _are_records(notes):
        by_id = {str(image.get("id")): image for image in images}
        return [by_id.get(str(note.get("image_id")), {}) | note for note in notes]
    if any(find_images(name) for name in value):
        return [
            {"file_name": name, **(v if isinstance(v, dict) else {"caption": v})}
            for name, v in value.items()
        ]
    return next((v for v in value.values() if _are_records(v)), [])


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _find_name_column(records: Iterable[Record], find_images: Finder) -> str | None:
    """Return the column with the most image names, or None if no column has any; names with a suffix count double."""
    scores: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(name, str) and isinstance(value, str) and find_images(value):
                scores[name] = scores.get(name, 0) + (2 if "." in value else 1)
    return max(scores, key=scores.__getitem__, default=None)


def _records_from_text(
    text: str, find_images: Finder, *, must_match_half: bool
) -> tuple[list[Record], str] | None:
    """Return the rows of a CSV with header or of "name, caption" lines, and the column of image names; else None.

    With `must_match_half`, a CSV with header must name an image in at least half of its rows.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if pairs := _name_caption_pairs(lines, find_images):
        return [{"file_name": name, "caption": words} for name, words in pairs], "file_name"
    tables = [_rows_with_header(text, delimiter) for delimiter in DELIMITERS]
    named = [(_find_name_column(records, find_images), records) for records in tables]
    named = [(column, records) for column, records in named if column is not None]
    if not named:
        return None
    column, records = max(
        named, key=lambda table: sum(bool(find_images(r[table[0]])) for r in table[1])
    )
    if must_match_half and 2 * sum(bool(find_images(record[column])) for record in records) < len(
        records
    ):
        return None
    return records, column


def _rows_with_header(text: str, delimiter: str) -> list[Record]:
    """Parse a CSV with a header into a dict per row; delimiters in the last column need no quotes.

    Returns [] for any other text.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        header, *rows = [row for row in reader if any(cell.strip() for cell in row)] or [[]]
    except csv.Error:
        return []
    header = [name.strip() for name in header]
    if len(header) < 2:
        return []
    if any(len(row) > len(header) for row in rows):
        if rank(header[-1]) is None:
            return []
        glue, last = (", " if delimiter == "," else delimiter), len(header) - 1
        rows = [[*row[:last], glue.join(row[last:])] for row in rows]
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in rows]


def _name_caption_pairs(lines: list[str], find_images: Finder) -> list[tuple[str, str]]:
    """Return (image name, caption) pairs from lines such as `a.jpg, a cat` or `a.jpg#0<TAB>A cat.`; [] for other text.

    Other text is one whose first line begins with no image name, or whose lines all have the same number of three or
    more cells, as a table has.
    """
    for delimiter in (*DELIMITERS, ":", " "):
        parts = [line.partition(delimiter) for line in lines]
        found = [
            (name, _unquote(words.strip()))
            for name, _, words in ((n.strip().strip('"'), d, w) for n, d, w in parts)
            if "." in name and words.strip() and find_images(name)
        ]
        is_sure = (
            len(found) == len(lines) > 2 if delimiter in ": " else 2 * len(found) >= len(lines)
        )
        if not found or not is_sure or found[0][0] != parts[0][0].strip().strip('"'):
            continue
        if delimiter in ": " or len(lines) == 1 or _row_width(lines, delimiter) in ({2}, None):
            return found
    return []


def _row_width(lines: list[str], delimiter: str) -> set[int] | None:
    """Return {n} if every line has n cells, None if the number varies, or an empty set if the CSV is malformed."""
    try:
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        widths = {len(row) for row in rows}
    except csv.Error:
        return set()
    return widths if len(widths) == 1 else None


def _unquote(words: str) -> str:
    is_quoted = len(words) > 1 and words[0] == words[-1] == '"'
    return words[1:-1].replace('""', '"') if is_quoted else words
