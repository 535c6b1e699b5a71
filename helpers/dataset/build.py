"""The dataset on disk: an image folder with metadata.csv that `datasets.load_dataset` and every trainer read."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
from PIL import Image

from helpers.config import DatasetConfig
from helpers.dataset.card import card
from helpers.errors import RunError
from helpers.pictures import open_rgb
from helpers.records import read_metadata
from helpers.run import Run
from helpers.store import damage, folder_hash, replacing_folder, write_text

ORIENTATION = 0x0112  # the EXIF tag


def build(config: DatasetConfig, run: Run, kept: pd.DataFrame, left_out: pd.DataFrame) -> None:
    """Write dataset/ beside its place and rename it in: `kept` has a column `split`.

    The suffix is added to the captions here and nowhere else. Images stay whole; those that are not
    plain upright RGB are written as such. The same input gives the same bytes.
    """
    run.write_config("dataset", config)
    with replacing_folder(run.dataset) as folder:
        for name, images in kept.groupby("split"):
            part = folder / run.split(name).name
            part.mkdir()
            names = [_put(run.image(file_name), part) for file_name in images["file_name"]]
            metadata = pd.DataFrame({"file_name": names, "text": images["caption"] + config.suffix})
            metadata.to_csv(part / run.split_metadata(name).name, index=False)
        write_text(folder / "README.md", card(config, run, kept, left_out))


def _put(image: Path, folder: Path) -> str:
    """Copy an image as it is, or as an upright RGB PNG; return its name there."""
    with Image.open(image) as opened:
        plain = opened.mode == "RGB" and opened.getexif().get(ORIENTATION, 1) == 1
    if plain:
        shutil.copyfile(image, folder / image.name)
        return image.name
    open_rgb(image).save(folder / f"{image.stem}.png")
    return f"{image.stem}.png"


def verify_dataset(run: Run) -> str:
    """Load the dataset as a user would, check it against its manifest, and say what is in it.

    Raises RunError if a file is missing or changed.
    """
    import datasets

    run.require(run.dataset, "dataset")
    if what := damage(run.dataset):
        raise RunError(f"{what}: run 03_dataset again")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("imagefolder", data_dir=str(run.dataset), cache_dir=cache)
        counts = {name: len(part) for name, part in loaded.items()}
    for name, count in counts.items():
        if count != len(read_metadata(run.split_metadata(name))):
            raise RunError(
                f"{run.split(name)} holds {count} images, not what its metadata.csv lists: run 03 again"
            )
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"{listed} images in {run.dataset}, hash {folder_hash(run.dataset)[:12]}"
