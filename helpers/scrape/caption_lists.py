"""Lists of captions: CSV with or without a header, JSON and JSON lines, parquet; of many programs, none of them named.

A list is one if the cells of a column name images that were found. Its names are compared with those, never opened.
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
# columns that hold a caption, the first that there is counts; then any other with "caption" or "prompt" in it
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
Finder = Callable[[str], list[Path]]  # the images that a name means; none if it is not plain


def rank(column: str) -> int | None:
    """How early a column is taken for the captions, 0 first; None if it is not."""
    name = column.strip().lower()
    if name in COLUMNS:
        return COLUMNS.index(name)
    is_one = ("caption" in name or "prompt" in name) and not NOT_CAPTIONS.search(name)
    return len(COLUMNS) if is_one else None


def captions_in(value: Any) -> list[str]:
    """The captions that a cell or a field holds: a text, or a list of texts."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for v in values if isinstance(v, str) and (text := one_line(v))]


def read_records(path: Path, text: str, find: Finder) -> tuple[list[Record], str] | None:
    """The rows of a list and the column that names the images; None if it names none."""
    match path.suffix.lower():
        case ".json":
            records = _of_json(_parsed(text), find)
        case ".jsonl" | ".ndjson":
            records = [_parsed(line) for line in text.splitlines() if line.strip()]
        case _:
            return _of_table(text, find, must_be_half=path.suffix.lower() == ".txt")
    records = [record for record in records if isinstance(record, dict)]
    column = _naming_column(records, find)
    return (records, column) if column is not None else None


def read_parquet(path: Path, find: Finder) -> tuple[list[Record], str] | None:
    """The same of a parquet file, of which only columns of text and lists of it are read."""
    import pyarrow as arrow
    from pyarrow import parquet

    def is_text(kind: arrow.DataType) -> bool:
        if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
            kind = kind.value_type
        return arrow.types.is_string(kind) or arrow.types.is_large_string(kind)

    schema = parquet.read_schema(path)
    names = [field.name for field in schema if is_text(field.type)]
    records = parquet.read_table(path, columns=names).to_pylist()
    column = _naming_column(records, find)
    return (records, column) if column is not None else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_object(text: str) -> Record:
    """The object of JSON that a text is, empty if it is none."""
    value = _parsed(text)
    return value if isinstance(value, dict) else {}


def _of_json(value: Any, find: Finder) -> list[Any]:
    """A list of records; a dict from names to captions or to records; COCO's images and annotations."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return []
    images, notes = value.get("images"), value.get("annotations")
    if _are_records(images) and _are_records(notes):
        by_id = {str(image.get("id")): image for image in images}
        return [by_id.get(str(note.get("image_id")), {}) | note for note in notes]
    if any(find(name) for name in value):
        return [
            {"file_name": name, **(v if isinstance(v, dict) else {"caption": v})}
            for name, v in value.items()
        ]
    return next((v for v in value.values() if _are_records(v)), [])


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _naming_column(records: Iterable[Record], find: Finder) -> str | None:
    """The column that names the most images, by file name rather than by stem; None if none names any."""
    scores: dict[str, int] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(name, str) and isinstance(value, str) and find(value):
                scores[name] = scores.get(name, 0) + (2 if "." in value else 1)
    return max(scores, key=scores.__getitem__, default=None)


def _of_table(text: str, find: Finder, *, must_be_half: bool) -> tuple[list[Record], str] | None:
    """A table with a header, or lines of a name and a caption without one."""
    lines = [line for line in text.splitlines() if line.strip()]
    if pairs := _pairs(lines, find):
        return [{"file_name": name, "caption": words} for name, words in pairs], "file_name"
    tables = [_with_header(text, delimiter) for delimiter in DELIMITERS]
    named = [(_naming_column(records, find), records) for records in tables]
    named = [(column, records) for column, records in named if column is not None]
    if not named:
        return None
    column, records = max(named, key=lambda table: sum(bool(find(r[table[0]])) for r in table[1]))
    if must_be_half and 2 * sum(bool(find(record[column])) for record in records) < len(records):
        return None
    return records, column


def _with_header(text: str, delimiter: str) -> list[Record]:
    """The rows of a table; a last cell that was parted at its own commas is put together again."""
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


def _pairs(lines: list[str], find: Finder) -> list[tuple[str, str]]:
    """(name, caption) of lines that begin with the name of an image: `a.jpg, a cat`, `a.jpg#0<TAB>A cat.`

    None where the first line does not, or where each line has the same three parts or more.
    """
    for delimiter in (*DELIMITERS, ":", " "):
        parts = [line.partition(delimiter) for line in lines]
        found = [
            (name, _unquoted(words.strip()))
            for name, _, words in ((n.strip().strip('"'), d, w) for n, d, w in parts)
            if "." in name and words.strip() and find(name)
        ]
        is_sure = (
            len(found) == len(lines) > 2 if delimiter in ": " else 2 * len(found) >= len(lines)
        )
        if not found or not is_sure or found[0][0] != parts[0][0].strip().strip('"'):
            continue
        if delimiter in ": " or len(lines) == 1 or _widths(lines, delimiter) in ({2}, None):
            return found
    return []


def _widths(lines: list[str], delimiter: str) -> set[int] | None:
    """How many parts the lines have; None where they differ, so that the delimiter is in the captions as well."""
    try:
        rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        widths = {len(row) for row in rows}
    except csv.Error:
        return set()
    return widths if len(widths) == 1 else None


def _unquoted(words: str) -> str:
    is_quoted = len(words) > 1 and words[0] == words[-1] == '"'
    return words[1:-1].replace('""', '"') if is_quoted else words
