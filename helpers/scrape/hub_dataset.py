"""Source: an image dataset of the Hugging Face hub, or a folder laid out like one."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.config import ScrapeConfig
from helpers.core.decode import read_picture_file
from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.scrape.columns import Columns
from helpers.scrape.folder import Names, file_id, shown
from helpers.scrape.items import Final, Found, Listing

if TYPE_CHECKING:
    from datasets import Dataset


def find(config: ScrapeConfig, _run: Run) -> Listing:
    """Every image of every split; a text column becomes the captions beside the images.

    Raises RunError if the dataset is not to be had, or has no images.
    """
    import datasets

    datasets.disable_progress_bars()
    name, folder = config.dataset_id, Path(config.dataset_id).expanduser()
    try:
        splits = datasets.load_dataset(str(folder) if folder.is_dir() else name)
    except Exception as error:
        raise RunError(
            f"dataset_id {name!r} is not to be had ({type(error).__name__}): give a hub id such as name/dataset "
            "(for a private one set HF_TOKEN), or a folder in imagefolder layout"
        ) from None
    is_local = folder.is_dir()
    allowed = (folder if is_local else Path(datasets.config.HF_CACHE_HOME)).resolve()
    address = "" if is_local else f"https://huggingface.co/datasets/{name}"
    columns = Columns(next(iter(splits.values())).features, config)
    if not columns.image:
        raise RunError(f"dataset_id {name!r} has no column of images: choose an image dataset")
    names, found = Names(), []
    for split, part in splits.items():
        found += _of_split(split, part, allowed, names, address, columns)
    return Listing(found, [str(columns)])


def _of_split(
    split: str, part: "Dataset", allowed: Path, names: Names, address: str, columns: Columns
) -> list[Found]:
    import datasets
    import pyarrow.compute

    part = part.cast_column(columns.image, datasets.Image(decode=False))
    table = part.with_format("arrow")[:]
    paths = pyarrow.compute.struct_field(table[columns.image], "path").to_pylist()
    found = []
    for i, (path, caption) in enumerate(zip(paths, columns.captions(table), strict=True)):
        base = Path(path).name if path else f"{split}-{i:05d}"
        shortcode, index = names.give(Path(base))
        name, source_id = _place(Path(path), allowed) if path else ("", "")
        found.append(
            Found(
                name=name or f"{split}/{base}",
                shortcode=shortcode,
                index=index,
                load=partial(_bytes, part, i, columns.image, allowed),
                caption=caption,
                url=address,
                source_id=source_id,
            )
        )
    return found


def _place(path: Path, allowed: Path) -> tuple[str, str]:
    """The name and the source_id of an image that is a file of the dataset's folder; empty if it is none."""
    if not path.is_absolute() or not path.is_file() or not path.resolve().is_relative_to(allowed):
        return "", ""
    name = shown(path.resolve().relative_to(allowed))
    return name, file_id(name, path.stat())


def _bytes(part: "Dataset", i: int, column: str, allowed: Path) -> bytes:
    """An image file as it is in the dataset. Raises Final for one that lies elsewhere on this machine."""
    image = part[i][column]
    if image["bytes"]:
        return image["bytes"]
    path = Path(image["path"] or "").resolve()
    if not path.is_relative_to(allowed) or not path.is_file():
        raise Final("lies outside of the dataset's folder")
    return read_picture_file(path)
