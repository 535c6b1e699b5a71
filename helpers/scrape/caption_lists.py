"""Parse lists of image names with captions: CSV with or without a header, JSON, JSON lines and Parquet.

A file counts as a list if one of its columns names images of the folder. The paths in that column are compared with the
paths of the images and never opened.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from helpers.core.text import one_line

if TYPE_CHECKING:
    from pyarrow import Schema

DELIMITERS = ",\t;|"
# the first line of a list for Excel
NAMED_DELIMITER = re.compile(r'"?sep=([^"\r\n])\1*"?(?=[\r\n])', re.IGNORECASE)
MAX_NUMBERS = 5  # of lines, named
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


class Table(NamedTuple):
    """The rows of a list."""

    records: Sequence[Record] = ()
    column: str = ""  # with image names
    problems: tuple[str, ...] = ()  # rows that cannot be used, and what to do


class ListError(ValueError):
    """The error for a list that would give wrong captions. The message says where, and what to do."""


def rank(column: str) -> int | None:
    """Return a column's priority as a source of captions (0 is best), or None if the name suggests other content."""
    name = column.strip().lower()
    if name in COLUMNS:
        return COLUMNS.index(name)
    is_one = ("caption" in name or "prompt" in name) and not NOT_CAPTIONS.search(name)
    return len(COLUMNS) if is_one else None


def captions_in(value: Any) -> list[str]:
    """Return the non-empty captions in a table cell that holds one string or a list of strings."""
    values = value if isinstance(value, list | tuple) else [value]
    return [text for v in values if isinstance(v, str) and (text := one_line(v))]


def read_records(path: Path, text: str, find_images: Finder) -> Table:
    """Parse CSV, JSON or JSON lines. Without a column of image names, the table has no rows.

    Raises ListError for a CSV file with a quotation mark that does not close, or with a column given twice.
    """
    match path.suffix.lower():
        case ".json":
            values = _records_from_json(parse_json(text), find_images)
            return _table_from_json(enumerate(values, 1), "entries", find_images)
        case ".jsonl" | ".ndjson":
            lines = enumerate(io.StringIO(text, newline=None), 1)
            values = ((number, parse_json(line)) for number, line in lines if line.strip())
            return _table_from_json(values, "lines", find_images)
        case suffix:
            return _records_from_text(text, find_images, must_match_half=suffix == ".txt")


def read_parquet(path: Path, find_images: Finder) -> Table:
    """Read a Parquet file's texts. Without a column of image names, the table has no rows."""
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


def _table_from_json(values: Iterable[tuple[int, Any]], word: str, find_images: Finder) -> Table:
    records, others, no_texts = [], [], []
    for number, value in values:
        if not isinstance(value, dict):
            others.append(number)
            continue
        records.append(value)
        if _lacks_text(value):
            no_texts.append(number)
    table = _with_name_column(records, find_images)
    problems = []
    if others and (table.column or word == "lines"):
        advice = "write each as {...}, without a comma after it"
        problems.append(f"{len(others)} {word} are no JSON object ({_first(others)}): {advice}")
    if no_texts and table.column:
        advice = "write it in quotation marks"
        problems.append(
            f"{len(no_texts)} {word} have a caption that is no text ({_first(no_texts)}): {advice}"
        )
    return table._replace(problems=tuple(problems))


def _first(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:MAX_NUMBERS])) + ", ..." * (len(numbers) > MAX_NUMBERS)


def _lacks_text(record: Record) -> bool:
    cells = [value for column, value in record.items() if rank(column) is not None]
    return not any(map(captions_in, cells)) and any(_is_no_text(value) for value in cells)


def _is_no_text(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(v, dict | list | int | float) for v in values)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _with_name_column(records: list[Record], find_images: Finder) -> Table:
    scores: Counter[str] = Counter()
    for record in records:
        for name, value in record.items():
            if isinstance(name, str) and isinstance(value, str) and find_images(value):
                scores[name] += 2 if "." in value else 1  # a suffix makes it surer
    return Table(records, max(scores, key=scores.__getitem__)) if scores else Table()


def _records_from_text(text: str, find_images: Finder, *, must_match_half: bool) -> Table:
    delimiters = DELIMITERS
    if match := NAMED_DELIMITER.match(text):
        delimiters, text = match[1], text[match.end() :]
    if pairs := _name_caption_pairs(text, delimiters, find_images):
        return Table([{"file_name": name, "caption": words} for name, words in pairs], "file_name")

    def count_named(table: Table) -> int:
        return sum(bool(find_images(record[table.column])) for record in table.records)

    tables, errors = [Table()], []
    for delimiter in delimiters:
        try:
            rows = _rows_with_header(text, delimiter, find_images)
        except ListError as error:
            named = [_names_image(line, delimiter, find_images) for line in text.splitlines()]
            least = len(named) / 2 if must_match_half else 1
            errors += [error] if sum(named) >= least else []
        else:
            tables.append(_with_name_column(rows, find_images))
    best = max(tables, key=count_named)
    if errors and not best.column:
        raise errors[0]
    return Table() if must_match_half and 2 * count_named(best) < len(best.records) else best


def _names_image(line: str, delimiter: str, find_images: Finder) -> bool:
    cells = (cell.strip(' "\r\n') for cell in line.split(delimiter))
    return any(find_images(cell) for cell in cells if "." in cell)


def _split_rows(text: str, delimiter: str, find_images: Finder) -> list[tuple[str, list[str]]]:
    """Return a CSV text's rows: each as it is written, and its cells. Raises ListError at an open quotation mark."""
    lines = [*io.StringIO(text, newline=""), "\n"]  # an open quotation mark takes in the last one
    read = partial(csv.reader, delimiter=delimiter, skipinitialspace=True)
    reader, rows, start = read(lines), [], 0
    try:
        for cells in reader:
            written = lines[start : reader.line_num]
            if len(written) > 1:
                list(read(written, strict=True))
                if any(_names_image(line, delimiter, find_images) for line in written[1:]):
                    raise csv.Error  # the mark that closes is of another row
            if any(cell.strip() for cell in cells):
                rows.append(("".join(written), cells))
            start = reader.line_num
    except csv.Error:
        raise ListError(
            f"a cell that begins on line {start + 1} does not end: close its quotation mark"
        ) from None
    return rows


def _rows_with_header(text: str, delimiter: str, find_images: Finder) -> list[Record]:
    header, *rows = [cells for _, cells in _split_rows(text, delimiter, find_images)] or [[]]
    header = [name.strip() for name in header]
    if len(header) < 2:
        return []
    if any(len(row) > len(header) for row in rows):
        if rank(header[-1]) is None:
            return []
        glue, last = (", " if delimiter == "," else delimiter), len(header) - 1
        rows = [[*row[:last], glue.join(row[last:])] for row in rows]
    for name, count in Counter(header).items():
        if name and count > 1:
            raise ListError(f"has the column {one_line(name)} {count} times: rename all but one")
    return [dict(zip(header, row + [""] * len(header), strict=False)) for row in rows]


def _name_caption_pairs(text: str, delimiters: str, find_images: Finder) -> list[tuple[str, str]]:
    for delimiter in (*delimiters, ":", " "):
        is_csv = delimiter in delimiters
        try:
            rows = (
                _split_rows(text, delimiter, find_images)
                if is_csv
                else [(line, []) for line in text.splitlines() if line.strip()]
            )
        except ListError:
            continue
        parts = [row.partition(delimiter) for row, _ in rows]
        found = [
            (name, _unquote(words.strip()))
            for start, _, words in parts
            if "." in (name := start.strip().strip('"')) and words.strip() and find_images(name)
        ]
        is_sure = 2 * len(found) >= len(rows) if is_csv else len(found) == len(rows) > 2
        if not found or not is_sure or found[0][0] != parts[0][0].strip().strip('"'):
            continue
        # lines such as `a.jpg, a cat`; a table's would all have the same number of three or more cells
        widths = {len(cells) for _, cells in rows}
        if not is_csv or len(rows) == 1 or len(widths) > 1 or widths == {2}:
            return found
    return []


def _unquote(words: str) -> str:
    is_quoted = len(words) > 1 and words[0] == words[-1] == '"'
    return words[1:-1].replace('""', '"') if is_quoted else words
