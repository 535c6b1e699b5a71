"""The dataset on disk: an image folder with metadata.csv that `datasets.load_dataset` and every trainer read."""

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pandas as pd
from PIL import Image

from helpers.config import DatasetConfig
from helpers.core.decode import ImageError, decode, read_picture_file, strip_metadata
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, replacing_folder
from helpers.core.records import NO_BREAK_SPACE, read_metadata
from helpers.core.run import Run
from helpers.dataset.dataset_card import write_card
from helpers.dataset.dataset_files import (
    ABOUT,
    NOT_IN_IT,
    SPLITS,
    Record,
    read_about,
    read_records,
    write_about,
    write_records,
)
from helpers.dataset.history import remember
from helpers.dataset.join import up_to_date


def held_out(config: DatasetConfig, run: Run) -> dict[str, str]:
    """The side of each image of 01 in the dataset which is there, if it was split by the same share and seed."""
    if not (run.dataset / ABOUT).is_file():
        return {}
    settings = read_about(run.dataset)["settings"]
    if any(settings.get(name) != getattr(config, name) for name in ("validation_share", "seed")):
        return {}
    return {r.image: r.split for r in read_records(run.dataset)}


def build(config: DatasetConfig, run: Run, kept: pd.DataFrame, left_out: pd.DataFrame) -> None:
    """Write dataset/ beside its place and rename it in: `kept` has a column `split`.

    Captions are as 02 has them now; the suffix is added here and nowhere else, once. Images stay whole, upright and
    in sRGB, without metadata. The same input gives the same bytes. Permissions are as 01 has them now. Raises RunError
    for images of another run, or chosen by other settings.
    """
    kept = up_to_date(config, run, kept)
    remember(run)
    with replacing_folder(run.dataset) as folder:
        for split in kept["split"].unique():
            (folder / split).mkdir()
        put = [_put(run, folder, row, config.suffix) for row in kept.itertuples()]
        write_records(folder, [record for record, _ in put], run.split_metadata("train").name)
        changed = Counter(note for _, notes in put for note in notes)
        write_about(folder, run.name, config, left_out["kind"].value_counts().to_dict(), changed)
        write_card(folder)
    run.write_config("dataset", config)


def _put(run: Run, folder: Path, row: object, suffix: str) -> tuple[Record, tuple[str, ...]]:
    """Write an image's pixels, and nothing else of its file; say what was done to it.

    A file that has these very pixels gives its compressed data; any other becomes a PNG.
    """
    source = run.image(row.file_name)
    content = read_picture_file(source)
    picture = decode(content)
    # a spreadsheet takes a name that begins with a hyphen for a formula
    name = f"_{source.name}" if source.name.startswith("-") else source.name
    target = folder / row.split / name
    stored = strip_metadata(content, picture.format) if picture.is_stored else None
    if stored and _has_pixels(stored, picture.image):
        target.write_bytes(stored)
    else:
        target = target.with_suffix(".png")
        picture.image.save(target)
    given = {
        field: getattr(row, field) for field in Record.__dataclass_fields__ if hasattr(row, field)
    }
    given |= {"file_name": target.name, "image": source.name, "text": row.caption + suffix}
    return Record(**given), picture.notes


def _has_pixels(content: bytes, image: Image.Image) -> bool:
    with suppress(ImageError):
        return decode(content).image.tobytes() == image.tobytes()
    return False


def verify_dataset(run: Run) -> str:
    """Load the dataset as a user would, check it against its manifest, and say what is in it.

    Raises RunError if a file is missing or changed, or is not what the settings say.
    """
    run.require(run.dataset, "dataset")
    if what := find_corruption(run.dataset):
        raise RunError(f"{what}: run 03_dataset again")
    if not (run.dataset / ABOUT).is_file():
        raise RunError(f"{run.dataset} is of an older 03_dataset: run it again")
    counts = _load(run)
    settings, made_with = run.read_config("dataset"), read_about(run.dataset)["settings"]
    if any(
        settings.get(name) != value for name, value in made_with.items() if name not in NOT_IN_IT
    ):
        raise RunError(
            f"{run.config('dataset')} is not what {run.dataset} was made with: run 03_dataset again"
        )
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{listed} images in {run.dataset}, hash {folder_hash(run.dataset)[:12]}"


def _load(run: Run) -> dict[str, int]:
    """The number of images in each split. Raises RunError where `datasets` finds other texts than are listed."""
    import datasets

    datasets.disable_progress_bars()
    listed = {split: read_metadata(run.split_metadata(split)) for split in _splits(run)}
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("imagefolder", data_dir=str(run.dataset), cache_dir=cache)
        texts = {
            name: sorted(t.removesuffix(NO_BREAK_SPACE) for t in map(str, part["text"]))
            for name, part in loaded.items()
        }
    for split, rows in listed.items():
        if texts.get(split) != sorted(text for _, text in rows):
            raise RunError(
                f"{run.split(split)} does not load as its metadata.csv lists it: run 03_dataset again"
            )
    return {split: len(rows) for split, rows in listed.items()}


def _splits(run: Run) -> list[str]:
    """The splits that have images. Raises RunError if there is none to train on."""
    run.require(run.split_metadata("train"), "dataset")
    return [split for split in SPLITS if run.split_metadata(split).is_file()]
