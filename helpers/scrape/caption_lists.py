"""Parse files that list captions by image name: CSV with or without a header, JSON, JSON lines and Parquet.

A file counts as a list if one of its columns names images of the folder. The paths in that column are compared with the
paths of the images and never opened.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core.text import one_line

if TYPE_CHECKING:
    from pyarrow import Schema

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
Table = tuple[list[Record], str]  # rows, and the column with image names
Finder = Callable[[str], list[Path]]  # the images that a name refers to; none if ambiguous


def rank(column: str) -> int | None:
    """Return a column's precedence as a source of captions, 0 first, or None if its name suggests no captions."""
    name = column.strip().lower()
    if name in COLUMNS:
        return COLUMNS.index(name)
    is_one = ("caption" in name or "prompt" in name) and not NOT_CAPTIONS.search(name)
    return len(COLUMNS) if is_one else None


def captions_in(value: Any) -> list[str]:
    """Return the non-empty captions in a table cell, which holds a string or a list of strings."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for v in values if isinstance(v, str) and (text := one_line(v))]


def read_records(path: Path, text: str, find_images: Finder) -> Table:
    """Return the rows and image-name column of a CSV, JSON or JSON lines text, or ([], "") without such a column."""
    match path.suffix.lower():
        case ".json":
            records = _records_from_json(parse_json(text), find_images)
        case ".jsonl" | ".ndjson":
            records = [parse_json(line) for line in text.splitlines() if line.strip()]
        case suffix:
            return _records_from_text(text, find_images, must_match_half=suffix == ".txt")
    return _with_name_column([r for r in records if isinstance(r, dict)], find_images)


def read_parquet(path: Path, find_images: Finder) -> Table:
    """Return the rows and image-name column of a Parquet file's text columns, or ([], "") without such a column."""
    from pyarrow import parquet

    columns = text_columns(parquet.read_schema(path))
    return _with_name_column(parquet.read_table(path, columns=columns).to_pylist(), find_images)


def text_columns(schema: "Schema") -> list[str]:
    """Return the names of an Arrow table's columns that hold strings or lists of strings."""
    kinds = {column.name: getattr(column.type, "value_type", column.type) for column in schema}
    texts = ("string", "large_string", "string_view")
    return [name for name, kind in kinds.items() if str(kind) in texts]


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, or None if the text is not valid JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _records_from_json(value: Any, find_images: Finder) -> list[Any]:
    """Return the rows of parsed JSON: a list, a dict by image name, COCO, or a list in a dict. Other JSON has none."""
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


def _with_name_column(records: list[Record], find_images: Finder) -> Table:
    """Return the rows and the column with the most image names, or ([], "") if no column has any."""
    scores: Counter[str] = Counter()
    for record in records:
        for name, value in record.items():
            if isinstance(name, str) and isinstance(value, str) and find_images(value):
                scores[name] += 2 if "." in value else 1  # a suffix makes it surer
    return (records, max(scores, key=scores.__getitem__)) if scores else ([], "")


def _records_from_text(text: str, find_images: Finder, *, must_match_half: bool) -> Table:
    """Return the rows and image-name column of a CSV or of "name, caption" lines, or ([], "") for other text.

    With `must_match_half`, a CSV with header must name an image in at least half of its rows.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if pairs := _name_caption_pairs(lines, find_images):
        return [{"file_name": name, "caption": words} for name, words in pairs], "file_name"

    def count_named(table: Table) -> int:
        return sum(bool(find_images(record[table[1]])) for record in table[0])

    tables = [_with_name_column(_rows_with_header(text, d), find_images) for d in DELIMITERS]
    best = max(tables, key=count_named)
    return ([], "") if must_match_half and 2 * count_named(best) < len(best[0]) else best


def _rows_with_header(text: str, delimiter: str) -> list[Record]:
    """Return a dict per row of a CSV with a header, or [] for other text. The last column may hold delimiters."""
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
    """Return the (image name, caption) pairs of lines such as `a.jpg, a cat`. Returns [] for a table.

    A table's lines all have the same number of three or more cells. The first line must begin with an image name.
    """
    for delimiter in (*DELIMITERS, ":", " "):
        parts = [line.partition(delimiter) for line in lines]
        found = [
            (name, _unquote(words.strip()))
            for start, _, words in parts
            if "." in (name := start.strip().strip('"')) and words.strip() and find_images(name)
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
    """Return the number of cells per line as {n}. Returns None if lines differ, or an empty set for malformed CSV."""
    try:
        widths = set(map(len, csv.reader(lines, delimiter=delimiter, skipinitialspace=True)))
    except csv.Error:
        return set()
    return widths if len(widths) == 1 else None


def _unquote(words: str) -> str:
    is_quoted = len(words) > 1 and words[0] == words[-1] == '"'
    return words[1:-1].replace('""', '"') if is_quoted else words
