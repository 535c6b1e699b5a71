"""Captions as people have them: which files of a folder hold words, and of which image.

Texts beside images in the endings of kohya's trainers, OneTrainer, Takeout and others; one text for a post of
instaloader's; lists (caption_lists.py). What was taken and what was left is told. Nothing stops for a text.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.text import alternatives, decode, decode_western, one_line
from helpers.scrape.caption_lists import (
    Finder,
    Record,
    captions_in,
    parse_object,
    rank,
    read_parquet,
    read_records,
)

# endings of a text beside its image, the first that there is counts
BESIDE = (".txt", ".caption", ".captions")
LISTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")
OTHER_WORDS = (
    ".doc", ".docx", ".htm", ".html", ".log", ".md", ".odt", ".ods", ".pdf", ".rst", ".rtf", ".toml", ".xls",
    ".xlsx", ".xml", ".xz", ".yaml", ".yml",
)  # fmt: skip
MAX_TEXT_BYTES = 1_000_000  # beside an image
MAX_LIST_BYTES = 200_000_000
POSITIONS = ("first", "last", "longest", "shortest", "joined")
MASK = re.compile(r"(.+)-(?:mask|cond)label")  # OneTrainer's, beside the image
# kohya's conditioning_data_dir: mask/10_name/a.png, as img/10_name/a.png or 10_name/a.png
MASK_FOLDERS, IMAGE_FOLDERS = ("mask", "masks", "conditioning"), ("img", "image", "images", "train")
# of kohya's sample/: OUTPUT_e000001_00_20260101120000_42
SAMPLE = re.compile(r"(?:.+_)?e?\d{6}_\d\d_\d{14}(?:_\d+)?")
KOHYA = re.compile(r"[1-9]\d{0,2}_\S.*")  # a folder's repeats and its class
REGULARISATION = ("reg", "regs", "regularisation", "regularization")
# x.jpg.supplemental-metadata(1), cut anywhere
TAKEOUT = re.compile(r"(.+?\.[A-Za-z0-9]{3,4})(?:\.s[a-z-]*)?(\(\d+\))?")
INSTALOADER = re.compile(r".*\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_UTC")
SHORTCODE_INDEX = re.compile(r"([A-Za-z0-9_-]{3,64})_(\d{1,2})", re.ASCII)


@dataclass
class CaptionFiles:
    """What the files of a folder say of its images."""

    captions: dict[Path, str]  # by image, each on one line
    no_pictures: set[Path]  # texts, and images that are no art: masks, regularisation pictures
    # shortcode and index, where a list of the seed's form tells them
    posts: dict[Path, tuple[str, int]]
    line: str  # what was taken, and below it what was left, a line each


def holds_words(path: Path) -> bool:
    """Whether a file is a text, a list or a document by its ending."""
    return path.suffix.lower() in (*BESIDE, *LISTS, *OTHER_WORDS)


def read_captions(root: Path, files: Sequence[Path], choice: str = "first") -> CaptionFiles:
    """The captions of a folder's images, told from its files, all of which lie at or below `root`.

    Where there are several of an image, `choice` says which: a position, or the name of an ending or a column.
    Raises RunError for a choice that is neither.
    """
    return _Reader(root, files).read(choice)


def choose(sources: dict[str, list[str]], choice: str) -> str | None:
    """One of the captions that an image has, by source in order; None if the chosen source has none."""
    if choice not in POSITIONS:
        found = sources.get(choice) or []
        return found[0] if found else None
    found = next((texts for name, texts in sources.items() if _is_default(name) and texts), [])
    match choice:
        case "longest" | "shortest":
            return (max if choice == "longest" else min)(found, key=len, default=None)
        case "joined":
            return " ".join(found) or None
    return found[0 if choice == "first" else -1] if found else None


def check_choice(choice: str, names: Iterable[str]) -> None:
    """Raises RunError if `choice` is no position and none of the names of endings and columns that there are."""
    known = list(dict.fromkeys(names))
    if choice not in (*POSITIONS, *known):
        raise RunError(
            f"caption_choice is {choice!r}: choose one of {', '.join(POSITIONS)}"
            + (f", or of what there is: {', '.join(known)}" if known else "")
        )


def _is_default(name: str) -> bool:
    return name.startswith(".") or rank(name) is not None


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, for a line."""
    names = list(names)
    first = ", ".join(one_line(name)[:80] for name in names[:most])
    return first + (f" and {len(names) - most} more" if len(names) > most else "")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class _Index:
    """Images by what a text may call them: by name, by stem, in any case, in NFC or NFD."""

    def __init__(self, root: Path, images: Iterable[Path]) -> None:
        self.root = root
        self.paths: dict[str, Path] = {}
        self.beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.folded: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.posts: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.anywhere: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            self.paths[path.relative_to(root).as_posix()] = path
            for name in {path.name, path.stem}:
                self.beside[path.parent, name].append(path)
                self.folded[path.parent, _folded(name)].append(path)
                self.anywhere[_folded(name)].append(path)
            if match := re.fullmatch(r"(.+)_\d{1,2}", path.stem):
                self.posts[path.parent, _folded(match[1])].append(path)

    def named(self, folder: Path, name: str) -> list[Path]:
        """The images of a folder with this name or stem; none if two different ones fit equally well."""
        if exact := self.beside.get((folder, name)):
            return exact
        found = self.folded.get((folder, _folded(name)), [])
        return found if len({path.stem for path in found}) == 1 else []

    def listed(self, folder: Path, name: str) -> list[Path]:
        """The image that a list in `folder` means; its names are compared, never opened."""
        name = re.sub(r"#\d+$", "", name.strip().replace("\\", "/").removeprefix("./"))
        if not name or len(name) > 1000:
            return []
        for base in (folder.relative_to(self.root).as_posix(), "."):
            path = name if base == "." else f"{base}/{name}"
            if path in self.paths:
                return [self.paths[path]]
        if "/" not in name and (found := self.named(folder, name)):
            return found
        last = name.rpartition("/")[2]
        found = self.anywhere.get(_folded(last), [])
        return found if len(found) == 1 else []


@dataclass
class _Told:
    """What a line says beside the captions' sources."""

    several: int = 0  # images with several captions in the source that is taken
    empty: int = 0
    western: int = 0  # read as Windows-1252
    unreadable: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # texts of no image here
    no_column: list[str] = field(default_factory=list)  # lists, each with the columns that it has
    unmatched: list[str] = field(default_factory=list)  # names in lists that are no images here


class _Reader:
    """Reads the captions of a folder once."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self.texts = [path for path in files if holds_words(path)]
        images = [path for path in files if not holds_words(path)]
        self.masks = _masks(root, images)
        self.regularisation = _regularisation(root, images)
        self.samples = [
            path for path in images if path.parent.name == "sample" and SAMPLE.fullmatch(path.stem)
        ]
        no_art = {*self.masks, *self.regularisation, *self.samples}
        self.images = [path for path in images if path not in no_art]
        self.index = _Index(root, images)
        # by image, by source in order of precedence; and how each source is told
        self.sources: dict[Path, dict[str, list[str]]] = defaultdict(dict)
        self.labels: dict[tuple[Path, str], str] = {}
        self.posts: dict[Path, tuple[str, int]] = {}
        self.told = _Told()

    def read(self, choice: str) -> CaptionFiles:
        lists = self._read_beside()
        for path in sorted(lists):
            self._read_list(path)
        check_choice(choice, (name for image in self.images for name in self.sources[image]))
        captions, taken = {}, Counter()
        for image in self.images:
            caption = choose(self.sources[image], choice)
            if caption is None and ".txt" in self.sources[image] and choice in POSITIONS:
                caption = ""  # its text is empty
            if caption is not None:
                captions[image] = caption
            if caption:
                source = self._defaults(image)[0] if choice in POSITIONS else choice
                taken[self.labels[image, source]] += 1
                self.told.several += len(self.sources[image][source]) > 1
        return CaptionFiles(
            captions,
            {*self.texts, *self.masks, *self.regularisation, *self.samples},
            self.posts,
            self._line(taken, choice),
        )

    def _defaults(self, image: Path) -> list[str]:
        """The sources that have a caption of an image and need not be asked for by name, in order."""
        return [name for name, found in self.sources[image].items() if found and _is_default(name)]

    # beside

    def _read_beside(self) -> list[Path]:
        """Read the texts that have their images' names; the lists among the others come back."""
        matched: dict[Path, list[Path]] = {}
        others = []
        for path in self.texts:
            if path.suffix.lower() in (*BESIDE, ".json") and (images := self._images_of(path)):
                matched[path] = images
            else:
                others.append(path)
        matched |= self._in_folders_apart(others)
        others = [path for path in others if path not in matched]
        self.told.left += [self._name(p) for p in others if p.suffix.lower() not in LISTS]
        order = {ending: i for i, ending in enumerate((*BESIDE, ".json"))}
        # x.jpg.txt before x.txt, and .txt before .caption
        paths = sorted(matched, key=lambda p: (order[p.suffix.lower()], -len(p.name), p))
        for path, text in self._decoded(paths):
            if path.suffix.lower() != ".json":
                self._add_text(path, text, matched[path])
                continue
            for image in matched[path]:
                self._add_record(image, parse_object(text), ".json")
        return [path for path in others if path.suffix.lower() in LISTS]

    def _in_folders_apart(self, texts: Iterable[Path]) -> dict[Path, list[Path]]:
        """Texts in a folder without images, most of which have the name of one image elsewhere: `captions/a.txt`."""
        with_images = {path.parent for path in self.images}
        folders: dict[Path, list[Path]] = defaultdict(list)
        for path in texts:
            if path.suffix.lower() in BESIDE and path.parent not in with_images:
                folders[path.parent].append(path)
        matched: dict[Path, list[Path]] = {}
        for paths in folders.values():
            found = {p: self.index.anywhere.get(_folded(p.stem), []) for p in paths}
            found = {p: images for p, images in found.items() if len(images) == 1}
            matched |= found if 2 * len(found) >= len(paths) else {}
        return matched

    def _images_of(self, path: Path) -> list[Path]:
        """The images that a text beside them is about; all of a post's, where the post has one text."""
        folder, name = path.parent, path.name[: -len(path.suffix)]
        if found := self.index.named(folder, name):
            return found
        if path.suffix.lower() == ".json":
            match = TAKEOUT.fullmatch(name)
            original, number = Path(match[1] if match else ""), (match and match[2]) or ""
            return self.index.named(folder, f"{original.stem}{number}{original.suffix}")
        return self.index.posts.get((folder, _folded(name)), [])

    def _add_text(self, path: Path, text: str, images: list[Path]) -> None:
        ending = path.suffix.lower()
        found = alternatives(text)
        of_post = self.index.posts.get((path.parent, _folded(path.stem)))
        is_post = images == of_post or INSTALOADER.fullmatch(path.stem)
        if is_post and found:  # what was published with a post is one text, whatever its lines
            found = [" ".join(found)]
        self.told.empty += not found
        for image in images:
            if ending not in self.sources[image]:
                self.sources[image][ending] = found
                self.labels[image, ending] = f"{ending} of posts" if is_post else ending

    def _add_record(self, image: Path, record: Record, label: str) -> int:
        """Add the captions of a row's columns, those taken by default first; how many of these there are."""
        columns = sorted(
            (c for c in record if isinstance(c, str)),
            key=lambda c: 99 if rank(c) is None else rank(c),
        )
        count = 0
        for column in columns:
            if found := captions_in(record[column]):
                known = self.sources[image].setdefault(column, [])
                known += [text for text in found if text not in known]
                self.labels.setdefault((image, column), f"{label} ({column})")
                count += rank(column) is not None
        return count

    # lists

    def _read_list(self, path: Path) -> None:
        name = self._name(path)
        find = partial(self.index.listed, path.parent)
        table = self._table(path, find)
        if table is None or not self._is_of_images(*table, find):
            self.told.left += [] if name in self.told.unreadable else [name]
            return
        records, naming = table
        taken = 0
        for record in records:
            value = record.get(naming)
            images = find(value) if isinstance(value, str) else []
            words = {k: v for k, v in record.items() if k != naming}
            for image in images:
                taken += self._add_record(image, words, name)
                self._add_post(image, value, words)
            if value and not images:
                self.told.unmatched.append(str(value))
        if not taken:
            columns = some((str(column) for column in records[0] if column), 8)
            self.told.no_column.append(
                f"{name} has the columns {columns}: say which holds the captions as caption_choice"
            )

    def _table(self, path: Path, find: Finder) -> tuple[list[Record], str] | None:
        """The rows of a list and the column that names images, None if it is no list of this folder's."""
        try:
            if path.suffix.lower() != ".parquet":
                texts = self._decoded([path], MAX_LIST_BYTES)
                return read_records(path, texts[0][1], find) if texts else None
            if self._may_read(path, MAX_LIST_BYTES):
                return read_parquet(path, find)
        except Exception:  # pyarrow raises what its decoders do
            self.told.unreadable.append(self._name(path))
        return None

    def _is_of_images(self, records: list[Record], naming: str, find: Finder) -> bool:
        """Whether a list is about the images: by file names, or by the stems of most of them.

        A number in a table of something else may be the stem of an image as well.
        """
        named = [v for r in records if isinstance(v := r.get(naming), str) and find(v)]
        most = max(len(records), len(self.images))
        return any("." in value for value in named) or 2 * len(named) >= most

    def _add_post(self, image: Path, name: str, words: Record) -> None:
        """In a list with the column `prompt`, as the seed's, a name is SHORTCODE_INDEX."""
        match = SHORTCODE_INDEX.fullmatch(Path(name).stem)
        if "prompt" in words and "text" not in words and match and Path(name).name == name:
            self.posts[image] = (match[1], int(match[2]))

    # files

    def _may_read(self, path: Path, most_bytes: int) -> bool:
        """Whether a file is not too large, and no link that leads out of the folder."""
        is_inside = not path.is_symlink() or path.resolve().is_relative_to(self.root.resolve())
        return is_inside and path.stat().st_size <= most_bytes

    def _decoded(
        self, paths: Sequence[Path], most_bytes: int = MAX_TEXT_BYTES
    ) -> list[tuple[Path, str]]:
        """Each file with its text. Files in no form of Unicode are judged together: one program wrote them."""
        contents = {}
        for path in paths:
            try:
                if self._may_read(path, most_bytes):
                    contents[path] = path.read_bytes()
                    continue
            except OSError:
                pass
            self.told.unreadable.append(self._name(path))
        texts = {path: decode(content) for path, content in contents.items()}
        others = [path for path, text in texts.items() if text is None]
        western = decode_western(contents[path] for path in others)
        if western is None:
            self.told.unreadable += map(self._name, others)
        else:
            self.told.western += len(others)
            texts |= zip(others, western, strict=True)
        return [(path, text) for path, text in texts.items() if text is not None]

    def _name(self, path: Path) -> str:
        """A path as text, whatever bytes its name has."""
        name = path.relative_to(self.root).as_posix()
        return os.fsencode(name).decode("utf-8", "backslashreplace")

    # the line

    def _line(self, taken: Counter[str], choice: str) -> str:
        told, missing = self.told, len(self.images) - sum(taken.values())
        sources = " and ".join(f"{count} {label}" for label, count in taken.most_common())
        by_position = choice in POSITIONS
        others = Counter(name for image in self.images for name in self._defaults(image)[1:])
        folders = {p.parent.name for p in self.images if KOHYA.fullmatch(p.parent.name)}
        pdfs = [name for name in told.left if name.lower().endswith(".pdf")]
        others_left = [name for name in told.left if name not in pdfs]
        asides = [
            (sources and missing, f"{missing} images have none"),
            (
                told.several and by_position,
                f"{told.several} have several: {choice} is taken (caption_choice)",
            ),
            (others and by_position, f"also there: {some(others)} (caption_choice)"),
            (told.western, f"{told.western} read as Windows-1252"),
            (told.empty, f"{told.empty} are empty"),
            (told.unreadable, f"not read: {some(told.unreadable)} (save them as UTF-8)"),
            (told.no_column, some(told.no_column)),
            (
                told.unmatched,
                f"{len(told.unmatched)} names in lists are no images here: {some(told.unmatched)}",
            ),
            (self.masks, f"{len(self.masks)} masks are no pictures"),
            (
                self.regularisation,
                f"{len(self.regularisation)} regularisation pictures (reg/) left out",
            ),
            (self.samples, f"{len(self.samples)} samples that a training drew left out"),
            (folders, f"kohya's folders ({some(sorted(folders))}): repeats and class are not used"),
            (pdfs, f"PDFs are not read, save their pages as images: {some(pdfs)}"),
            (others_left, f"not used: {some(others_left)}"),
        ]
        head = f"captions from {sources}" if sources else f"no captions for {missing} images"
        return "\n  ".join([head, *(words for is_so, words in asides if is_so)])


def _masks(root: Path, images: Iterable[Path]) -> list[Path]:
    """Masks of images: beside them by OneTrainer's names, or at the same place in a folder of masks."""
    beside = {(path.parent, path.stem) for path in images}
    places, apart = set(), {}
    for path in images:
        folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
        place = (
            *(f for f in folders if f not in (*MASK_FOLDERS, *IMAGE_FOLDERS)),
            _folded(path.stem),
        )
        if set(MASK_FOLDERS) & set(folders):
            apart[path] = place
        else:
            places.add(place)
    return [
        path
        for path in images
        if apart.get(path) in places
        or ((match := MASK.fullmatch(path.stem)) and (path.parent, match[1]) in beside)
    ]


def _regularisation(root: Path, images: Iterable[Path]) -> list[Path]:
    """kohya's reg/1_class/ beside img/10_name class/: what the base model drew, no art."""
    images = list(images)
    in_kohya = [p for p in images if KOHYA.fullmatch(p.parent.name)]
    found = [
        p
        for p in in_kohya
        if any(part.lower() in REGULARISATION for part in p.relative_to(root).parts[:-2])
    ]
    return found if len(found) < len(in_kohya) else []
