"""Find the captions of a folder's images in the folder's text files and lists, such as CSV or JSON files.

It reads one text file per image, as kohya's trainers, OneTrainer, Google Takeout and others write it; one per post, as
instaloader does; and lists (caption_lists.py). A summary says which files were used and which were not; a file that
cannot be read is listed there and raises no error.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import is_inside, printable_path
from helpers.core.text import alternatives, decode, decode_western, fold, one_line
from helpers.scrape import caption_lists
from helpers.scrape.caption_lists import Finder, ListError, Record, Table, captions_in, rank
from helpers.scrape.non_art import KOHYA, find_non_art

# of a text file named like its image, in order of precedence
CAPTION_SUFFIXES = (".txt", ".caption", ".captions")
PER_IMAGE = (*CAPTION_SUFFIXES, ".json")
LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")
DOCUMENT_SUFFIXES = (
    ".doc", ".docx", ".htm", ".html", ".log", ".md", ".odt", ".ods", ".pdf", ".rst", ".rtf", ".toml", ".xls",
    ".xlsx", ".xml", ".xz", ".yaml", ".yml",
)  # fmt: skip
MAX_TEXT_BYTES = 1_000_000  # of an image's text file
MAX_LIST_BYTES = 200_000_000
POSITIONS = ("first", "last", "longest", "shortest", "joined")
# x.jpg.supplemental-metadata(1), truncated anywhere
TAKEOUT = re.compile(r"(.+?\.[A-Za-z0-9]{3,4})(?:\.s[a-z-]*)?(\(\d+\))?")
INSTALOADER = re.compile(r".*\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_UTC")
SHORTCODE_INDEX = re.compile(r"([A-Za-z0-9_-]{3,64})_(\d{1,2})", re.ASCII)


@dataclass
class CaptionFiles:
    """The captions of a folder's images, and the folder's files that are not artworks."""

    captions: dict[Path, str]  # by image, on one line
    non_images: set[Path]  # texts, and images that are not art
    # shortcode and index, if a list in the seed's format states them
    posts: dict[Path, tuple[str, int]]
    line: str  # a summary: what is used, and below it what is not, a line each


def is_text_file(path: Path) -> bool:
    """Return True if a path has the suffix of a caption file (.txt), a list (.csv, .json) or a document (.pdf)."""
    return path.suffix.lower() in (*CAPTION_SUFFIXES, *LIST_SUFFIXES, *DOCUMENT_SUFFIXES)


def read_captions(root: Path, files: Sequence[Path], choice: str = "first") -> CaptionFiles:
    """Return the captions of a folder's images, as found in the folder's text files and lists.

    `files` are the folder's images, text files and lists. If an image has several captions, `choice` selects one: by
    position ("first", "longest"), or by the name of a suffix or a column. Raises RunError for any other choice.
    """
    return _Reader(root, files).read(choice)


def choose_caption(sources: dict[str, list[str]], choice: str) -> str | None:
    """Choose one of an image's captions, which are grouped by file ending or column. Returns None if there is none."""
    if choice not in POSITIONS:
        return next(iter(sources.get(choice, ())), None)
    found = next((texts for name, texts in sources.items() if _is_default(name) and texts), [])
    match choice:
        case "longest" | "shortest":
            return (max if choice == "longest" else min)(found, key=len, default=None)
        case "joined":
            return " ".join(found) or None
    return found[0 if choice == "first" else -1] if found else None


def check_caption_choice(choice: str, names: Iterable[str]) -> None:
    """Raise RunError if `choice` is neither a position, such as "first", nor the name of a suffix or column."""
    known = list(dict.fromkeys(names))
    if choice not in (*POSITIONS, *known):
        raise RunError(
            f"caption_choice is {choice!r}: choose one of {', '.join(POSITIONS)}"
            + (f", or one of those found: {', '.join(known)}" if known else "")
        )


def _is_default(name: str) -> bool:
    return name.startswith(".") or rank(name) is not None


def some(names: Iterable[str], count: int = 3) -> str:
    """Return up to `count` names, separated by commas. If there are others, "and N more" follows."""
    names = list(names)
    first = ", ".join(one_line(name)[:80] for name in names[:count])
    return first + (f" and {len(names) - count} more" if len(names) > count else "")


def describe_captions(
    used: Counter[str], missing: int, several: int, others: Iterable[str], choice: str
) -> list[str]:
    """Return lines that name the suffixes or columns whose captions are used, and others that were found."""
    sources = " and ".join(f"{count} {source}" for source, count in used.most_common())
    lines = [f"captions from {sources}" if sources else f"no captions for {missing} images"]
    if sources and missing:
        lines.append(f"{missing} images have none")
    if several and choice in POSITIONS:
        lines.append(f"{several} have several: {choice} is used (caption_choice)")
    if others and choice in POSITIONS:
        lines.append(f"also found: {some(others)} (caption_choice)")
    return lines


class _ImageIndex:
    def __init__(self, root: Path, images: Iterable[Path]) -> None:
        self.root, self.images = root, set(images)
        self.by_name: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.posts: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        self.anywhere: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            for name in {path.name, path.stem}:
                self.by_name[path.parent, fold(name)].append(path)
                self.anywhere[fold(name)].append(path)
            if match := re.fullmatch(r"(.+)_\d{1,2}", path.stem):
                self.posts[path.parent, fold(match[1])].append(path)

    def find_in_folder(self, folder: Path, name: str) -> list[Path]:
        """Return a folder's images with the given file name or stem. An exact match in letter case is preferred."""
        found = self.by_name.get((folder, fold(name)), [])
        exact = [path for path in found if name in (path.name, path.stem)]
        return exact or (found if len({path.stem for path in found}) == 1 else [])

    def find_listed(self, folder: Path, name: str) -> list[Path]:
        """Return the images that a name in a list file refers to, or [] if the name is unknown or ambiguous.

        The name is compared with the paths of known images and never opened.
        """
        name = re.sub(r"#\d+$", "", name.strip().replace("\\", "/").removeprefix("./"))
        if not name or len(name) > 1000:
            return []
        for path in (folder / name, self.root / name):
            if path in self.images:
                return [path]
        if "/" not in name and (found := self.find_in_folder(folder, name)):
            return found
        found = self.anywhere.get(fold(name.rpartition("/")[2]), [])
        return found if len(found) == 1 else []


class _Reader:
    """Collect the captions of a folder's images from text files and lists."""

    def __init__(self, root: Path, files: Sequence[Path]) -> None:
        self.root = root
        self.texts = [path for path in files if is_text_file(path)]
        images = [path for path in files if not is_text_file(path)]
        self.non_art = find_non_art(root, images)
        excluded = set().union(*self.non_art.values())
        self.images = [path for path in images if path not in excluded]
        self.index = _ImageIndex(root, images)
        # captions by image and source, in order of precedence; and each source's label
        self.sources: dict[Path, dict[str, list[str]]] = defaultdict(dict)
        self.labels: dict[tuple[Path, str], str] = {}
        self.posts: dict[Path, tuple[str, int]] = {}
        self.empty = self.windows_1252 = 0  # numbers of text files
        self.unreadable: list[str] = []
        self.unused: list[str] = []  # text files of no image here
        self.problems: list[str] = []  # of lists, each with what to do
        self.no_column: list[str] = []  # lists, each with its columns
        self.unmatched: list[str] = []  # names in lists of no image here

    def read(self, choice: str) -> CaptionFiles:
        for path in sorted(self._read_text_files()):
            self._read_list(path)
        names = (name for image in self.images for name in self.sources[image])
        check_caption_choice(choice, names)
        captions, used, several = {}, Counter(), 0
        for image in self.images:
            sources = self.sources[image]
            caption = choose_caption(sources, choice)
            if caption is None and ".txt" in sources and choice in POSITIONS:
                caption = ""  # its text file is empty
            if caption is not None:
                captions[image] = caption
            if caption:
                source = self._default_sources(image)[0] if choice in POSITIONS else choice
                used[self.labels[image, source]] += 1
                several += len(sources[source]) > 1
        non_images = set(self.texts).union(*self.non_art.values())
        return CaptionFiles(captions, non_images, self.posts, self._summary(used, several, choice))

    def _default_sources(self, image: Path) -> list[str]:
        return [name for name, found in self.sources[image].items() if found and _is_default(name)]

    def _read_text_files(self) -> list[Path]:
        matched: dict[Path, list[Path]] = {}
        for path in self.texts:
            if path.suffix.lower() in PER_IMAGE and (images := self._match_images(path)):
                matched[path] = images
        matched |= self._match_text_folders(path for path in self.texts if path not in matched)
        others = [path for path in self.texts if path not in matched]
        lists = [path for path in others if path.suffix.lower() in LIST_SUFFIXES]
        self.unused += [self._name(path) for path in others if path not in lists]
        # x.jpg.txt before x.txt, and .txt before .caption
        paths = sorted(matched, key=lambda p: (PER_IMAGE.index(p.suffix.lower()), -len(p.name), p))
        for path, text in self._read_texts(paths):
            if path.suffix.lower() != ".json":
                self._add_text(path, text, matched[path])
            elif isinstance(record := caption_lists.parse_json(text), dict):
                for image in matched[path]:
                    self._add_record(image, record, ".json")
        return lists

    def _match_text_folders(self, texts: Iterable[Path]) -> dict[Path, list[Path]]:
        with_images = {path.parent for path in self.images}
        folders: dict[Path, list[Path]] = defaultdict(list)
        for path in texts:
            if path.suffix.lower() in CAPTION_SUFFIXES and path.parent not in with_images:
                folders[path.parent].append(path)
        matched: dict[Path, list[Path]] = {}
        for paths in folders.values():
            found = {p: self.index.anywhere.get(fold(p.stem), []) for p in paths}
            found = {p: images for p, images in found.items() if len(images) == 1}
            matched |= found if 2 * len(found) >= len(paths) else {}
        return matched

    def _match_images(self, path: Path) -> list[Path]:
        folder, name = path.parent, path.name[: -len(path.suffix)]
        if found := self.index.find_in_folder(folder, name):
            return found
        if path.suffix.lower() == ".json":
            match = TAKEOUT.fullmatch(name)
            original, number = Path(match[1] if match else ""), (match and match[2]) or ""
            return self.index.find_in_folder(folder, f"{original.stem}{number}{original.suffix}")
        return self.index.posts.get((folder, fold(name)), [])  # all images of one post

    def _add_text(self, path: Path, text: str, images: list[Path]) -> None:
        suffix = path.suffix.lower()
        found = alternatives(text)
        of_post = self.index.posts.get((path.parent, fold(path.stem)))
        is_post = images == of_post or INSTALOADER.fullmatch(path.stem)
        if is_post and found:  # a published caption is one text, whatever its line breaks
            found = [" ".join(found)]
        self.empty += not found
        for image in images:
            if suffix not in self.sources[image]:
                self.sources[image][suffix] = found
                self.labels[image, suffix] = f"{suffix} of posts" if is_post else suffix

    def _add_record(self, image: Path, record: Record, label: str) -> int:
        columns = [column for column in record if isinstance(column, str)]
        count = 0
        for column in sorted(columns, key=lambda c: 99 if rank(c) is None else rank(c)):
            if found := captions_in(record[column]):
                known = self.sources[image].setdefault(column, [])
                known += [text for text in found if text not in known]
                self.labels.setdefault((image, column), f"{label} ({column})")
                count += rank(column) is not None  # used by default
        return count

    def _read_list(self, path: Path) -> None:
        name, find_images = self._name(path), partial(self.index.find_listed, path.parent)
        records, column, problems = self._parse_list(path, find_images)
        self.problems += [f"{name}: {problem}" for problem in problems]
        values = [record.get(column) for record in records]
        found = [find_images(value) if isinstance(value, str) else [] for value in values]
        named = [value for value, images in zip(values, found, strict=True) if images]
        # a number in an unrelated table may happen to be an image's stem
        is_most = 2 * len(named) >= max(len(records), len(self.images))
        if not records or not (is_most or any("." in value for value in named)):
            self.unused += [] if name in self.unreadable else [name]
            return
        count = 0
        for record, value, images in zip(records, values, found, strict=True):
            cells = {k: v for k, v in record.items() if k != column}
            for image in images:
                count += self._add_record(image, cells, name)
                match = SHORTCODE_INDEX.fullmatch(Path(value).stem)
                # in the seed's lists, with a column `prompt`, a name is SHORTCODE_INDEX
                if "prompt" in cells and "text" not in cells and match and "/" not in value:
                    self.posts[image] = (match[1], int(match[2]))
            if value and not images:
                self.unmatched.append(str(value))
        if not count:
            columns = some((str(key) for key in records[0] if key), 8)
            self.no_column.append(
                f"{name} has the columns {columns}: set caption_choice to the one with the captions"
            )

    def _parse_list(self, path: Path, find: Finder) -> Table:
        try:
            if path.suffix.lower() != ".parquet":
                for _, text in self._read_texts([path], MAX_LIST_BYTES):
                    return caption_lists.read_records(path, text, find)
            elif self._may_read(path, MAX_LIST_BYTES):
                return caption_lists.read_parquet(path, find)
        except ListError as error:
            return Table(problems=(str(error),))
        except Exception:  # pyarrow raises its decoders' exceptions
            self.unreadable.append(self._name(path))
        return Table()

    def _may_read(self, path: Path, max_bytes: int) -> bool:
        return is_inside(path, self.root) and path.stat().st_size <= max_bytes

    def _read_texts(
        self, paths: Sequence[Path], max_bytes: int = MAX_TEXT_BYTES
    ) -> list[tuple[Path, str]]:
        contents = {}
        for path in paths:
            with suppress(OSError):
                if self._may_read(path, max_bytes):
                    contents[path] = path.read_bytes()
        self.unreadable += [self._name(path) for path in paths if path not in contents]
        texts = {path: decode(content) for path, content in contents.items()}
        others = [path for path, text in texts.items() if text is None]
        western = decode_western(contents[path] for path in others)  # None unless all others are
        if western is None:
            self.unreadable += map(self._name, others)
        else:
            self.windows_1252 += len(others)
            texts |= zip(others, western, strict=True)
        return [(path, text) for path, text in texts.items() if text is not None]

    def _name(self, path: Path) -> str:
        return printable_path(path.relative_to(self.root))

    def _summary(self, used: Counter[str], several: int, choice: str) -> str:
        others = Counter(name for image in self.images for name in self._default_sources(image)[1:])
        missing = len(self.images) - used.total()
        lines = describe_captions(used, missing, several, others, choice)
        unmatched = f"{len(self.unmatched)} names in lists have no image here"
        folders = {p.parent.name for p in self.images if KOHYA.fullmatch(p.parent.name)}
        pdfs = [name for name in self.unused if name.lower().endswith(".pdf")]
        unused = [name for name in self.unused if name not in pdfs]
        notes = [
            (self.windows_1252, f"{self.windows_1252} read as Windows-1252"),
            (self.empty, f"{self.empty} are empty"),
            (self.unreadable, f"not read: {some(self.unreadable)} (save them as UTF-8)"),
            *((problem, problem) for problem in self.problems),
            (self.no_column, "; ".join(self.no_column)),
            (self.unmatched, f"{unmatched}: {some(self.unmatched)}"),
            *((paths, f"{len(paths)} {kind} left out") for kind, paths in self.non_art.items()),
            (folders, f"kohya's folders ({some(sorted(folders))}): repeats and class are not used"),
            (pdfs, f"PDFs are not read, save their pages as images: {some(pdfs)}"),
            (unused, f"not used: {some(unused)}"),
        ]
        return "\n  ".join([*lines, *(note for is_shown, note in notes if is_shown)])
