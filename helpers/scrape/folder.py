"""The image source "folder": a folder of the user's own images, with captions in text files, CSV, JSON or Parquet."""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from stat import S_ISREG

from helpers.config import ScrapeConfig
from helpers.core.decode import begins_as_picture, read_picture_file
from helpers.core.errors import RunError
from helpers.core.files import is_inside, printable_path
from helpers.core.run import Run
from helpers.host.here import HOST
from helpers.scrape.caption_files import is_text_file, read_captions, some
from helpers.scrape.identity import INSTAGRAM_NAME
from helpers.scrape.items import Listing, PermanentRefusal, SourceItem

MAX_STEM = 60
MAX_KINDS = 10  # of other files, named
VIDEOS = (".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".3gp", ".mts", ".mpg", ".mpeg", ".wmv")
# files that phones, cameras and programs write next to images
COMPANIONS = (
    *VIDEOS, ".aae", ".xmp", ".thm", ".ini", ".db", ".lnk", ".url", ".npz", ".safetensors", ".ckpt", ".pt",
)  # fmt: skip
ARCHIVES = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2")
UNFINISHED = (".icloud", ".crdownload", ".part", ".partial", ".download", ".opdownload")
NO_PICTURES = {
    **dict.fromkeys(COMPANIONS, ""),
    **dict.fromkeys(ARCHIVES, "unpack it"),
    **dict.fromkeys(UNFINISHED, "it has not been downloaded yet"),
}  # by suffix: what to tell of such a file
# those that cannot be read as well, so that they are told by name; a file of another suffix counts by its first bytes
PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".hif", ".avif", ".tif", ".tiff", ".psd",
    ".gif", ".bmp", ".jp2", ".jxl", ".psb", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
)  # fmt: skip
OF_TAKEOUT = re.compile(r".+\.[a-z0-9]{3,4}(\.[a-z-]+)?(\(\d+\))?\.json", re.IGNORECASE)


def list_items(config: ScrapeConfig, _run: Run) -> Listing:
    """Return the images below `config.folder`, sorted by path, each with its caption if found.

    Hidden files are left out, and files that can be no picture are counted by suffix.
    Raises RunError if the folder does not exist or has no image.
    """
    root = Path(config.folder).expanduser()
    if not root.is_dir():
        raise RunError(_explain_missing(root))
    files, unreadable = walk(root)
    beside = [path for path in files if not (is_text_file(path) or _may_be_picture(path, root))]
    others = set(beside)
    texts = read_captions(
        root, [path for path in files if path not in others], config.caption_choice
    )
    others |= texts.non_images
    images = [path for path in files if path not in others]
    beside += [path for path in files if OF_TAKEOUT.fullmatch(path.name)]
    if not images:
        found = f", but {_count_kinds(beside)}" if beside else ""
        raise RunError(
            f"folder {root} holds no image{found}: put JPEG, PNG, WEBP, HEIC or TIFF files into it"
        )
    names, items = UniqueNames(), []
    for path in images:
        shortcode, index = names.assign(path.relative_to(root))
        name = printable_path(path.relative_to(root))
        items.append(
            SourceItem(
                name=name,
                shortcode=shortcode,
                index=index,
                load=partial(_read, path, root, config.max_image_mpx),
                caption=texts.captions.get(path),
                source_id=file_id(name, files[path]),
                size_bytes=files[path].st_size,
            )
        )
    notes = [texts.line]
    if beside:
        notes.append(f"beside them {_count_kinds(beside)}")
    if unreadable:
        notes.append(
            f"{len(unreadable)} paths cannot be read, such as {printable_path(unreadable[0])}"
        )
    items = _assign_posts(items, [texts.posts.get(path) for path in images])
    return Listing(items, notes, not unreadable)


def _may_be_picture(path: Path, root: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in PICTURES or suffix in NO_PICTURES:
        return suffix in PICTURES
    try:
        # reading tells that a link leads out of the folder
        return not is_inside(path, root) or begins_as_picture(path)
    except OSError:
        return True  # reading tells why


def _count_kinds(paths: list[Path]) -> str:
    """Return how many files there are of each suffix. Those about which there is something to do come first."""
    counts = Counter(sorted(path.suffix.lower() for path in paths)).most_common()
    kinds = [
        (f"{n} {suffix or 'without a suffix'}", NO_PICTURES.get(suffix)) for suffix, n in counts
    ]
    return some(
        [f"{kind} ({advice})" for kind, advice in kinds if advice]
        + [kind for kind, advice in kinds if not advice],
        MAX_KINDS,
    )


def _explain_missing(path: Path) -> str:
    if str(path) != str(path).strip(" '\""):
        return f"folder {str(path)!r} begins or ends with a space or a quotation mark: take it off"
    if path.is_file() and path.suffix.lower() == ".zip":
        return f"folder {path} is a ZIP: unpack it, or set source to 'export' if it is Instagram's"
    if path.is_file():
        return f"folder {path} is a file: give the path of its folder"
    return f"folder {path} is not there: give the path of a folder with your images{HOST.why_missing(path)}"


def walk(root: Path) -> tuple[dict[Path, os.stat_result], list[Path]]:
    """Return {path: stat result} of the visible files in a folder tree, and a list of the paths that cannot be read."""
    paths: list[Path] = []
    unreadable: list[Path] = []
    walked = os.walk(root, onerror=lambda error: unreadable.append(Path(error.filename)))
    for folder, folders, names in walked:
        folders[:] = [name for name in folders if not _is_hidden(name)]
        paths += [Path(folder, name) for name in names if not _is_hidden(name)]
    files: dict[Path, os.stat_result] = {}
    for path in sorted(paths):
        try:
            if S_ISREG((stat := path.stat()).st_mode):
                files[path] = stat
        except OSError:  # a broken link, or a disk error
            unreadable += [] if path.is_symlink() else [path]
    return files, unreadable


def _is_hidden(name: str) -> bool:
    # a picture that lies in iCloud alone is there as .NAME.icloud
    return name == "__MACOSX" or name.startswith(".") and not name.endswith(".icloud")


def _assign_posts(items: list[SourceItem], posts: list[tuple[str, int] | None]) -> list[SourceItem]:
    pairs = [
        (item, replace(item, shortcode=post[0], index=post[1]) if post else item)
        for item, post in zip(items, posts, strict=True)
    ]
    count = Counter(new.stem.lower() for _, new in pairs)
    return [new if count[new.stem.lower()] == 1 else old for old, new in pairs]


def file_id(name: str, stat: os.stat_result) -> str:
    """Return an id that changes when the file changes: name, size, mtime and ctime in one string."""
    return f"{name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _read(path: Path, root: Path, max_mpx: int) -> bytes:
    if not is_inside(path, root):
        raise PermanentRefusal("is a link that leads out of the folder")
    return read_picture_file(path, max_mpx)


class UniqueNames:
    """Unique (shortcode, index) names for image paths. A shortcode has only letters, digits, - and _."""

    def __init__(self) -> None:
        self.given: set[tuple[str, int]] = set()

    def assign(self, path: Path) -> tuple[str, int]:
        match = INSTAGRAM_NAME.fullmatch(path.stem)
        shortcode, index = (match[1], int(match[2])) if match else (_slug(path), 1)
        plain, made_of = shortcode, os.fsencode(path.as_posix())
        while (shortcode.lower(), index) in self.given or not shortcode:
            digest = hashlib.sha256(made_of).hexdigest()[:8]
            shortcode, made_of = f"{plain}-{digest}".strip("-"), made_of + b"+"
        self.given.add((shortcode.lower(), index))
        return shortcode, index


def _slug(path: Path) -> str:
    letters = unicodedata.normalize("NFKD", path.with_suffix("").as_posix())
    bare = "".join(c for c in letters if not unicodedata.combining(c))  # é is e, not a gap
    return re.sub(r"[^A-Za-z0-9]+", "-", bare).strip("-")[:MAX_STEM]
