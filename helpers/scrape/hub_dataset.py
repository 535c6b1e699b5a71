"""The image source "hub": a dataset on the Hugging Face Hub, or a local folder in imagefolder layout."""

import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.config import ScrapeConfig
from helpers.core.decode import read_picture_file
from helpers.core.errors import RunError
from helpers.core.files import printable_path
from helpers.core.run import Run
from helpers.scrape import caption_files
from helpers.scrape.caption_lists import captions_in, rank, text_columns
from helpers.scrape.folder import UniqueNames, file_id
from helpers.scrape.items import Listing, PermanentRefusal, SourceItem

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from pyarrow import Table

# columns of inputs and conditions in ControlNet's and InstructPix2Pix's datasets
NOT_ART = re.compile(
    r"cond|mask|control|depth|canny|edge|pose|segment|source|input|original|before|hint|sketch|scribble|normal"
    r"|thumb|preview|reference|init",
    re.IGNORECASE,
)


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


class Columns:
    """A Hub dataset's image column and caption columns: those in the settings, else the likeliest by name.

    Raises RunError if a setting names a column that is missing.
    """

    def __init__(self, features: "Features", config: ScrapeConfig) -> None:
        import datasets

        self.choice, asked = config.caption_choice, config.image_column
        self.images = [n for n, kind in features.items() if isinstance(kind, datasets.Image)]
        if asked and asked not in self.images:
            raise RunError(
                f"image_column is {asked!r}: choose one of {', '.join(self.images) or 'none'}"
            )
        likely = [name for name in self.images if not NOT_ART.search(name)]
        self.image = asked or next(iter((*likely, *self.images)), "")
        texts = text_columns(features.arrow_schema)
        caption_files.check_caption_choice(self.choice, texts)
        self.texts = [self.choice]
        if self.choice in caption_files.POSITIONS:
            self.texts = sorted((n for n in texts if rank(n) is not None), key=rank)
        self.used: Counter[str] = Counter()
        self.missing = self.with_several = 0

    def captions(self, table: "Table") -> list[str | None]:
        """Return the caption of each row of `table`, with None for a row without a caption."""
        columns = {name: table[name].to_pylist() for name in self.texts}
        return [
            self._caption({name: captions_in(values[i]) for name, values in columns.items()})
            for i in range(len(table))
        ]

    def _caption(self, sources: dict[str, list[str]]) -> str | None:
        caption = caption_files.choose_caption(sources, self.choice)
        if caption is None:
            self.missing += 1
        else:
            name = next(name for name, found in sources.items() if found)
            self.used[name] += 1
            self.with_several += len(sources[name]) > 1
        return caption

    def __str__(self) -> str:
        """Return a summary in lines: the columns that captions and images come from, and the other candidates."""
        unused = [name for name in self.texts if name not in self.used]
        lines = caption_files.describe_captions(
            self.used, self.missing, self.with_several, unused, self.choice
        )
        if others := caption_files.some(name for name in self.images if name != self.image):
            lines.append(f"images from {self.image}, not {others} (image_column)")
        return "\n  ".join(lines)


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
        file = _local_file(path, allowed)
        name = printable_path(file.relative_to(allowed)) if file else f"{split}/{base}"
        found.append(
            SourceItem(
                name=name,
                shortcode=shortcode,
                index=index,
                load=partial(_read_image, part, i, columns.image, allowed),
                caption=caption,
                url=address,
                source_id=file_id(name, file.stat()) if file else "",
            )
        )
    return found


def _local_file(path: str | None, allowed: Path) -> Path | None:
    """Return the resolved path of a file inside the folder `allowed`, or None for any other path."""
    file = Path(path or "").resolve()
    is_local = Path(path or "").is_absolute() and file.is_relative_to(allowed) and file.is_file()
    return file if is_local else None


def _read_image(part: "Dataset", i: int, column: str, allowed: Path) -> bytes:
    image = part[i][column]
    if image["bytes"]:
        return image["bytes"]
    file = _local_file(image["path"], allowed)
    if not file:
        raise PermanentRefusal("is outside the dataset's folder")
    return read_picture_file(file)
