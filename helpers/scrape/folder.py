"""Source: a folder of one's own images, with captions in files beside them or in lists."""

import hashlib
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from helpers.colab import why_not_there
from helpers.config import ScrapeConfig
from helpers.errors import RunError
from helpers.scrape.caption_files import read_captions
from helpers.scrape.found import Final, Found

# SHORTCODE_INDEX as Instagram tools name files: eleven characters that no plain word has
INSTAGRAM_NAME = re.compile(
    r"(?=[\w-]*[a-z])(?=\w[\w-]*[A-Z0-9])([A-Z][\w-]{10})_(\d{1,2})", re.ASCII
)
MAX_STEM = 60


def find(config: ScrapeConfig) -> list[Found]:
    """Every picture below the folder, in order of path, with the captions that its texts tell; no hidden file.

    Raises RunError if the folder is not there or holds no picture.
    """
    root = Path(config.folder).expanduser()
    if not root.is_dir():
        raise RunError(
            f"folder {root} is not there: give the path of a folder with your images{why_not_there(root)}"
        )
    files = [
        path for path in sorted(root.rglob("*")) if path.is_file() and not _is_hidden(path, root)
    ]
    words = read_captions(root, files, config.caption_choice)
    images = [path for path in files if path not in words.no_pictures]
    if not images:
        raise RunError(f"folder {root} holds no image: put JPEG, PNG or WEBP files into it")
    print(words.line)
    names = Names()
    found = [_found(path, root, words.captions.get(path), names) for path in images]
    return in_posts(found, [words.posts.get(path) for path in images])


def in_posts(found: list[Found], posts: list[tuple[str, int] | None]) -> list[Found]:
    """The images with the (shortcode, index) that a list tells, but for two that would then have one name."""
    told = [
        replace(item, shortcode=post[0], index=post[1]) if post else item
        for item, post in zip(found, posts, strict=True)
    ]
    count = Counter(item.stem.lower() for item in told)
    return [
        new if count[new.stem.lower()] == 1 else old for old, new in zip(found, told, strict=True)
    ]


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path stays in the folder when its links are followed."""
    return path.resolve().is_relative_to(root.resolve())


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _found(path: Path, root: Path, caption: str | None, names: "Names") -> Found:
    shortcode, index = names.give(path.relative_to(root))
    name = path.relative_to(root).as_posix()
    return Found(name, shortcode, index, partial(_read, path, root), caption)


def _read(path: Path, root: Path) -> bytes:
    if not _is_inside(path, root):
        raise Final("is a link that leads out of the folder")
    return path.read_bytes()


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
