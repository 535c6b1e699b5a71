"""The image source "hub": a dataset on the Hugging Face Hub, or a local folder in imagefolder layout."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.config import ScrapeConfig
from helpers.core.decode import read_picture_file
from helpers.core.errors import RunError
from helpers.core.files import printable_path
from helpers.core.run import Run
from helpers.scrape.columns import Columns
from helpers.scrape.folder import UniqueNames, file_id
from helpers.scrape.items import Listing, PermanentRefusal, SourceItem

if TYPE_CHECKING:
    from datasets import Dataset


def list_items(config: ScrapeConfig, _run: Run) -> Listing:
    """Return the images of all splits of the dataset `config.dataset_id`, with captions from its text columns.

    Raises RunError if the dataset cannot be loaded, or has no image column.
    """
    import datasets

    datasets.disable_progress_bars()
    name, folder = config.dataset_id, Path(config.dataset_id).expanduser()
    try:
        splits = datasets.load_dataset(str(folder) if folder.is_dir() else name)
    except Exception as error:
        raise RunError(
            f"dataset_id {name!r} cannot be loaded ({type(error).__name__}): give a hub id such as name/dataset "
            "(for a private one set HF_TOKEN), or a folder in imagefolder layout"
        ) from None
    is_local = folder.is_dir()
    allowed = (folder if is_local else Path(datasets.config.HF_CACHE_HOME)).resolve()
    address = "" if is_local else f"https://huggingface.co/datasets/{name}"
    columns = Columns(next(iter(splits.values())).features, config)
    if not columns.image:
        raise RunError(f"dataset_id {name!r} has no image column: choose an image dataset")
    names, found = UniqueNames(), []
    for split, part in splits.items():
        found += _list_split(split, part, allowed, names, address, columns)
    return Listing(found, [str(columns)])


def _list_split(
    split: str, part: "Dataset", allowed: Path, names: UniqueNames, address: str, columns: Columns
) -> list[SourceItem]:
    import datasets
    import pyarrow.compute

    part = part.cast_column(columns.image, datasets.Image(decode=False))
    table = part.with_format("arrow")[:]
    paths = pyarrow.compute.struct_field(table[columns.image], "path").to_pylist()
    found = []
    for i, (path, caption) in enumerate(zip(paths, columns.captions(table), strict=True)):
        base = Path(path).name if path else f"{split}-{i:05d}"
        shortcode, index = names.assign(Path(base))
        name, source_id = _local_file(Path(path), allowed) if path else ("", "")
        found.append(
            SourceItem(
                name=name or f"{split}/{base}",
                shortcode=shortcode,
                index=index,
                load=partial(_read_image, part, i, columns.image, allowed),
                caption=caption,
                url=address,
                source_id=source_id,
            )
        )
    return found


def _local_file(path: Path, allowed: Path) -> tuple[str, str]:
    """Return the name and source_id of a file inside the folder `allowed`, or ("", "") for any other path."""
    if not path.is_absolute() or not path.is_file() or not path.resolve().is_relative_to(allowed):
        return "", ""
    name = printable_path(path.resolve().relative_to(allowed))
    return name, file_id(name, path.stat())


def _read_image(part: "Dataset", i: int, column: str, allowed: Path) -> bytes:
    """Return the bytes of the image in row `i`, from the dataset itself or from a file inside the folder `allowed`.

    Raises PermanentRefusal for a path outside that folder.
    """
    image = part[i][column]
    if image["bytes"]:
        return image["bytes"]
    path = Path(image["path"] or "").resolve()
    if not path.is_relative_to(allowed) or not path.is_file():
        raise PermanentRefusal("is outside the dataset's folder")
    return read_picture_file(path)
