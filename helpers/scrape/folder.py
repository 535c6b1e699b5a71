"""Source: a folder of one's own images, with captions in .txt files beside them, or in a metadata.csv."""

import hashlib
import re
from functools import partial
from pathlib import Path

from helpers.colab import why_not_there
from helpers.config import ScrapeConfig
from helpers.decode import read_picture_file
from helpers.errors import RunError
from helpers.scrape import listed
from helpers.scrape.found import Final, Found

# SHORTCODE_INDEX as Instagram tools name files: eleven characters that no plain word has
INSTAGRAM_NAME = re.compile(
    r"(?=[\w-]*[a-z])(?=\w[\w-]*[A-Z0-9])([A-Z][\w-]{10})_(\d{1,2})", re.ASCII
)
MAX_STEM = 60


def find(config: ScrapeConfig) -> list[Found]:
    """The folder's images; those without a .txt take their captions from a metadata.csv, if there is one."""
    return listed.with_captions(Path(config.folder).expanduser(), _walk(config))


def _walk(config: ScrapeConfig) -> list[Found]:
    """Every file below the folder that is no caption, in order of path; hidden ones are passed over.

    Raises RunError if the folder is not there or empty, or a caption has no image beside it.
    """
    root = Path(config.folder).expanduser()
    if not root.is_dir():
        raise RunError(
            f"folder {root} is not there: give the path of a folder with your images{why_not_there(root)}"
        )
    files = [
        path for path in sorted(root.rglob("*")) if path.is_file() and not _is_hidden(path, root)
    ]
    captions = {
        path.with_suffix(""): path
        for path in files
        if path.suffix.lower() == ".txt" and _is_inside(path, root)
    }
    images = [p for p in files if p.suffix.lower() != ".txt" and p.name != listed.METADATA]
    if not images:
        raise RunError(
            f"folder {root} holds no image: put JPEG, PNG, WEBP, HEIC or TIFF files into it"
        )
    for stem, path in captions.items():
        if stem not in {image.with_suffix("") for image in images}:
            raise RunError(
                f"{path} captions an image that is not there: add the image, or take the .txt away"
            )
    names = Names()
    return [
        _found(path, root, captions.get(path.with_suffix("")), names, config.max_image_mpx)
        for path in images
    ]


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path stays in the folder when its links are followed."""
    return path.resolve().is_relative_to(root.resolve())


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _found(
    path: Path, root: Path, caption_path: Path | None, names: "Names", max_mpx: int
) -> Found:
    shortcode, index = names.give(path.relative_to(root))
    caption = _read_caption(caption_path) if caption_path else None
    name = path.relative_to(root).as_posix()
    return Found(name, shortcode, index, partial(_read, path, root, max_mpx), caption)


def _read(path: Path, root: Path, max_mpx: int) -> bytes:
    if not _is_inside(path, root):
        raise Final("is a link that leads out of the folder")
    return read_picture_file(path, max_mpx)


def _read_caption(path: Path) -> str:
    """A caption file's text on one line. Raises RunError if it is not UTF-8."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise RunError(f"{path} is not UTF-8 text: save it again as UTF-8") from None


class Names:
    """Gives each path a shortcode and an index of its own, made of letters, digits, - and _ alone."""

    def __init__(self) -> None:
        self.given: set[tuple[str, int]] = set()

    def give(self, path: Path) -> tuple[str, int]:
        match = INSTAGRAM_NAME.fullmatch(path.stem)
        shortcode, index = (match[1], int(match[2])) if match else (_plain(path), 1)
        plain, made_of = shortcode, path.as_posix()
        while (shortcode.lower(), index) in self.given or not shortcode:
            digest = hashlib.sha256(made_of.encode()).hexdigest()[:8]
            shortcode, made_of = f"{plain}-{digest}".strip("-"), made_of + "+"
        self.given.add((shortcode.lower(), index))
        return shortcode, index


def _plain(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", path.with_suffix("").as_posix()).strip("-")[:MAX_STEM]
