"""Read and write the text files of a dataset's folder: metadata.csv in each split, provenance.jsonl and about.json.

`datasets.load_dataset("imagefolder")` reads metadata.csv. The card, a take-down and a push need only the others.
"""

import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from helpers.config import DatasetConfig
from helpers.core.files import read_json, sha256, write_json
from helpers.core.permission import MAY_BE_SHOWN
from helpers.core.records import NO_BREAK_SPACE, read_rows, rewrite
from helpers.core.run import METADATA

SPLITS = ("train", "validation")
CARD, ABOUT, RECORDS, SHEET = "README.md", "about.json", "provenance.jsonl", "contact_sheet.jpg"
NOT_IN_IT = ("run", "push_to", "private")  # settings that do not affect the folder's content


@dataclass(frozen=True)
class Record:
    """A row of provenance.jsonl: an image of the dataset, and its origin."""

    file_name: str
    image: str  # its name in images/, which may have another suffix or prefix
    split: str
    text: str
    shortcode: str
    index: int
    account: str
    taken_at: str
    url: str
    permission: str
    captioner: str
    model: str
    sha256: str  # of the image as published


def read_records(folder: Path) -> list[Record]:
    return read_rows(folder / RECORDS, Record)


def write_records(folder: Path, records: Sequence[Record]) -> None:
    """Write provenance.jsonl, and metadata.csv in each split that has images."""
    rewrite(folder / RECORDS, lambda row: True, records)
    for split in SPLITS:
        rows = [(r.file_name, r.text) for r in records if r.split == split]
        if rows:
            table = pd.DataFrame(rows, columns=["file_name", "text"])
            table["text"] = as_string_column(table["text"])
            table.to_csv(folder / split / METADATA, index=False, lineterminator="\n")


def as_string_column(texts: pd.Series) -> pd.Series:
    """Return the texts without leading spaces, as a column that pandas reads back from a CSV as strings.

    Texts such as `null` or `7` get a trailing no-break space, which tokenizers ignore and `read_metadata` strips.
    """
    texts = texts.str.lstrip()  # a caption of nothing but the suffix
    csv = io.StringIO(texts.to_csv(index=False))
    is_read = pd.read_csv(csv)["text"].to_numpy(object) == texts.to_numpy(object)
    return texts.where(is_read, texts + NO_BREAK_SPACE)


def copy_without(source: Path, target: Path, shortcode: str) -> None:
    """Copy a dataset's images and texts, except those of one post. The card and manifest are not copied."""
    kept = [record for record in read_records(source) if record.shortcode != shortcode]
    for name in (Path(record.split, record.file_name) for record in kept):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    write_records(target, kept)
    shutil.copyfile(source / ABOUT, target / ABOUT)


def write_about(
    folder: Path, config: DatasetConfig, left_out: dict[str, int], changed: dict[str, int]
) -> None:
    """Write about.json: the run's name, the settings, and the numbers of images left out and converted."""
    settings = {k: v for k, v in asdict(config).items() if k not in NOT_IN_IT}
    about = {"run": config.run, "settings": settings, "left_out": left_out, "changed": changed}
    write_json(folder / ABOUT, about)


def read_about(folder: Path) -> dict[str, Any]:
    return read_json(folder / ABOUT)


def made_with(folder: Path) -> dict[str, Any]:
    """Return the settings that affected a dataset's content, or {} if an older version did not record them."""
    settings = read_about(folder)["settings"] if (folder / ABOUT).is_file() else {}
    return {name: value for name, value in settings.items() if name not in NOT_IN_IT}


def may_be_shown(records: Sequence[Record]) -> bool:
    """Return True if every image's permission allows showing it to others, and False without images."""
    return bool(records) and all(record.permission in MAY_BE_SHOWN for record in records)


def content_hash(folder: Path) -> str:
    """Return one SHA-256 for the names and contents of all images and metadata.csv files."""
    files = [path for split in SPLITS for path in sorted((folder / split).glob("*"))]
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
