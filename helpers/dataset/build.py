"""Write dataset/ in the imagefolder format, which `datasets.load_dataset` and trainers read."""

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from helpers.config import DatasetConfig
from helpers.core.decode import ImageError, decode, read_picture_file, strip_metadata
from helpers.core.errors import RunError
from helpers.core.files import (
    MANIFEST,
    find_corruption,
    folder_hash,
    read_json,
    replacing_folder,
    write_manifest,
)
from helpers.core.records import NO_BREAK_SPACE, read_metadata
from helpers.core.run import Run
from helpers.dataset.dataset_card import write_card
from helpers.dataset.dataset_files import (
    CARD,
    SHEET,
    SPLITS,
    Record,
    made_with,
    read_records,
    write_about,
    write_records,
)
from helpers.dataset.history import record_edition
from helpers.dataset.join import refresh


def held_out(config: DatasetConfig, run: Run) -> dict[str, str]:
    """Return {image: split} of dataset/, or {} if the config's validation share or seed has changed."""
    settings = made_with(run.dataset)
    if any(settings.get(name) != getattr(config, name) for name in ("validation_share", "seed")):
        return {}
    return {r.image: r.split for r in read_records(run.dataset)}


def build(config: DatasetConfig, run: Run, kept: pd.DataFrame, left_out: pd.DataFrame) -> None:
    """Replace dataset/ atomically with the selected images and their current captions.

    Each goes to its split's folder: whole, upright, in sRGB, without metadata. The suffix is appended only here, once.
    The same input gives the same bytes. Raises RunError for images of another run, or selected with other settings.
    """
    kept = refresh(config, run, kept)
    record_edition(run)
    with replacing_folder(run.dataset, manifest=False) as folder:
        for split in kept["split"].unique():
            (folder / split).mkdir()
        written = [_write_image(run, folder, row, config.suffix) for row in kept.itertuples()]
        write_records(folder, [record for record, _ in written])
        changed = Counter(note for _, notes in written for note in notes)
        write_about(folder, config, left_out["kind"].value_counts().to_dict(), changed)
        write_card(folder)
        write_manifest(folder)
        _keep_card(run.dataset, folder)
    run.write_config("dataset", config)


def _keep_card(old: Path, new: Path) -> None:
    """Where no more than the card would change, keep the old one: newer words of ours make no other dataset."""
    if not (old / MANIFEST).is_file() or find_corruption(old):
        return
    listed = [read_json(folder / MANIFEST) for folder in (old, new)]
    theirs, ours = ({n: e for n, e in m.items() if n not in (CARD, SHEET)} for m in listed)
    if theirs == ours and listed[0].keys() == listed[1].keys():
        for name in (CARD, SHEET, MANIFEST):
            if (old / name).is_file():
                shutil.copyfile(old / name, new / name)


def _write_image(run: Run, folder: Path, row: Any, suffix: str) -> tuple[Record, tuple[str, ...]]:
    source = run.image(row.file_name)
    content = read_picture_file(source)
    picture = decode(content)
    # a name that begins with a hyphen is a formula in a spreadsheet
    name = f"_{source.name}" if source.name.startswith("-") else source.name
    target = folder / row.split / name
    stored = strip_metadata(content, picture.format) if picture.is_stored else None
    if stored and _has_pixels(stored, picture.image):
        target.write_bytes(stored)
    else:
        target = target.with_suffix(".png")
        picture.image.save(target)
    given = {k: v for k, v in row._asdict().items() if k in Record.__dataclass_fields__}
    given |= {"file_name": target.name, "image": source.name, "text": row.caption + suffix}
    return Record(**given), picture.notes


def _has_pixels(content: bytes, image: Image.Image) -> bool:
    with suppress(ImageError):
        return decode(content).image.tobytes() == image.tobytes()
    return False


def verify_dataset(run: Run) -> str:
    """Check that dataset/ matches its manifest and loads with `datasets`. Return a line with image counts and hash.

    A second line warns of the demo's suffix on other images than the demo's.
    Raises RunError if a file is missing or changed, or the settings differ.
    """
    run.require(run.dataset, "dataset")
    if what := find_corruption(run.dataset):
        raise RunError(f"{what}: run 03_dataset again")
    if not (recorded := made_with(run.dataset)):
        raise RunError(f"{run.dataset} is of an older 03_dataset: run it again")
    counts = _count_loaded(run)
    settings = run.read_config("dataset")
    if any(settings.get(name) != value for name, value in recorded.items()):
        raise RunError(
            f"{run.config('dataset')} is not what {run.dataset} was made with: run 03_dataset again"
        )
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    line = f"{listed} images in {run.dataset}, hash {folder_hash(run.dataset)[:12]}"
    return "\n".join(filter(None, [line, _suffix_warning(run, settings["suffix"])]))


def _suffix_warning(run: Run, suffix: str) -> str:
    # a fetched dataset has no settings of 01
    is_ours = run.config("scrape").is_file() and run.read_config("scrape").get("source") != "demo"
    if not is_ours or suffix != DatasetConfig.suffix:
        return ""
    return (
        f"warning: your captions end in the demo's suffix, “{suffix.strip()}”: set suffix to words of your own, as in "
        '-p suffix " in a kestrel gouache style", and run 03_dataset again'
    )


def _count_loaded(run: Run) -> dict[str, int]:
    import datasets

    datasets.disable_progress_bars()
    run.require(run.split_metadata("train"), "dataset")
    files = {split: run.split_metadata(split) for split in SPLITS}
    listed = {split: read_metadata(path) for split, path in files.items() if path.is_file()}
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
