"""Source: a folder of one's own images, with captions in files beside them or in lists."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from stat import S_ISREG

from helpers.config import ScrapeConfig
from helpers.core.decode import read_picture_file
from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.host.colab import why_not_there
from helpers.scrape.caption_files import read_captions
from helpers.scrape.identity import INSTAGRAM_NAME
from helpers.scrape.items import Final, Found, Listing

MAX_STEM = 60
VIDEOS = (".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".mpg", ".mpeg", ".wmv")
# what phones, cameras and programs lay beside images
COMPANIONS = (
    *VIDEOS, ".aae", ".xmp", ".thm", ".ini", ".db", ".lnk", ".url", ".npz", ".safetensors", ".ckpt", ".pt",
)  # fmt: skip
OF_TAKEOUT = re.compile(r".+\.[a-z0-9]{3,4}(\.[a-z-]+)?(\(\d+\))?\.json", re.IGNORECASE)


def find(config: ScrapeConfig, _run: Run) -> Listing:
    """Every picture below the folder, in order of path, with the captions that its texts tell; no hidden file.

    Raises RunError if the folder is not there or holds no picture.
    """
    root = Path(config.folder).expanduser()
    if not root.is_dir():
        raise RunError(_not_there(root))
    files, unreadable = walk(root)
    companions = {path for path in files if path.suffix.lower() in COMPANIONS}
    words = read_captions(
        root, [path for path in files if path not in companions], config.caption_choice
    )
    others = companions | words.no_pictures
    images = [path for path in files if path not in others]
    if not images:
        raise RunError(
            f"folder {root} holds no image: put JPEG, PNG, WEBP, HEIC or TIFF files into it"
        )
    names = Names()
    items = [
        _found(path, files[path], root, words.captions.get(path), names, config.max_image_mpx)
        for path in images
    ]
    companions |= {path for path in files if OF_TAKEOUT.fullmatch(path.name)}
    notes = [words.line] + [f"beside them {kinds_of(companions)}"] * bool(companions)
    if unreadable:
        notes.append(f"{len(unreadable)} paths cannot be read, such as {shown(unreadable[0])}")
    items = in_posts(items, [words.posts.get(path) for path in images])
    return Listing(items, notes, not unreadable)


def _not_there(path: Path) -> str:
    if str(path) != str(path).strip(" '\""):
        return f"folder {str(path)!r} begins or ends with a space or a quotation mark: take it off"
    if path.is_file() and path.suffix.lower() == ".zip":
        return f"folder {path} is a ZIP: unpack it, or set source to 'export' if it is Instagram's"
    if path.is_file():
        return f"folder {path} is a file: give the path of the folder that it lies in"
    return f"folder {path} is not there: give the path of a folder with your images{why_not_there(path)}"


def walk(root: Path) -> tuple[dict[Path, os.stat_result], list[Path]]:
    """Every file below a folder that is not hidden, in order of path, and the paths that cannot be read."""
    paths: list[Path] = []
    unreadable: list[Path] = []
    for folder, folders, names in os.walk(
        root, onerror=lambda e: unreadable.append(Path(e.filename))
    ):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        paths += [Path(folder, name) for name in names if not _is_hidden(name)]
    files: dict[Path, os.stat_result] = {}
    for path in sorted(paths):
        try:
            stat = path.stat()
        except OSError:  # a link that leads nowhere, or a disk that does not answer
            unreadable += [] if path.is_symlink() else [path]
            continue
        if S_ISREG(stat.st_mode):
            files[path] = stat
    return files, unreadable


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def kinds_of(paths: Iterable[Path]) -> str:
    """`12 .mov, 3 .aae`: files counted by their endings."""
    counts = Counter(sorted(path.suffix.lower() for path in paths))
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())


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


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file of a folder stays in it when its links are followed."""
    return not path.is_symlink() or path.resolve().is_relative_to(root.resolve())


def _found(
    path: Path,
    stat: os.stat_result,
    root: Path,
    caption: str | None,
    names: "Names",
    max_mpx: int,
) -> Found:
    shortcode, index = names.give(path.relative_to(root))
    name = shown(path.relative_to(root))
    return Found(
        name=name,
        shortcode=shortcode,
        index=index,
        load=partial(_read, path, root, max_mpx),
        caption=caption,
        source_id=file_id(name, stat),
        size_bytes=stat.st_size,
    )


def file_id(name: str, stat: os.stat_result) -> str:
    """What stays the same while a file does, by its name, size and times; a rename changes the last of them."""
    return f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def shown(path: Path) -> str:
    """A path as text; bytes of a name that are no UTF-8 are written as backslash, x and their hex."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _read(path: Path, root: Path, max_mpx: int) -> bytes:
    if not is_inside(path, root):
        raise Final("is a link that leads out of the folder")
    return read_picture_file(path, max_mpx)


class Names:
    """Gives each path a shortcode and an index of its own, made of letters, digits, - and _ alone."""

    def __init__(self) -> None:
        self.given: set[tuple[str, int]] = set()

    def give(self, path: Path) -> tuple[str, int]:
        match = INSTAGRAM_NAME.fullmatch(path.stem)
        shortcode, index = (match[1], int(match[2])) if match else (_plain(path), 1)
        plain, made_of = shortcode, os.fsencode(path.as_posix())
        while (shortcode.lower(), index) in self.given or not shortcode:
            digest = hashlib.sha256(made_of).hexdigest()[:8]
            shortcode, made_of = f"{plain}-{digest}".strip("-"), made_of + b"+"
        self.given.add((shortcode.lower(), index))
        return shortcode, index


def _plain(path: Path) -> str:
    letters = unicodedata.normalize("NFKD", path.with_suffix("").as_posix())
    bare = "".join(c for c in letters if not unicodedata.combining(c))  # é is e, not a gap
    return re.sub(r"[^A-Za-z0-9]+", "-", bare).strip("-")[:MAX_STEM]
