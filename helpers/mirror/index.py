"""The index of a run's mirror on Drive: a JSON list of all mirrored files, archives and folders.

It is written last and read first. Two slots are written in turn, each with its own SHA-256: if a write is lost, cut off
or renamed, the other slot is intact, and so are the files that it lists. The names of its fields are JSON keys on
users' Drives, and stay.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SLOTS = ("kept-0.json", "kept-1.json")
SMALL = 8_000_000  # bytes; an archive below this is merged into the next


@dataclass(frozen=True)
class File:
    """A small file in the index: its size, SHA-256, modification time (ns), and the archive (`part`) that holds it."""

    size: int
    sha256: str
    mtime_ns: int
    part: str


@dataclass(frozen=True)
class Archive:
    """A tar archive in the index; `payload` is the total size of the files that were put into it, in bytes."""

    size: int
    sha256: str
    payload: int


@dataclass(frozen=True)
class Folder:
    """A folder with a manifest, in the index: the manifest's SHA-256 and modification time (ns), and the total size."""

    sha256: str
    mtime_ns: int
    size: int


@dataclass
class Index:
    """The files, archives (`parts`) and folders on a run's mirror at one moment."""

    generation: int = 0
    files: dict[str, File] = field(default_factory=dict)
    parts: dict[str, Archive] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)

    def slot(self) -> str:
        return SLOTS[self.generation % 2]

    def dump(self) -> bytes:
        body = asdict(self)
        return json.dumps({"sha256": _digest(body), "index": body}).encode()

    def files_of(self, archive: str) -> list[str]:
        return [name for name, file in self.files.items() if file.part == archive]

    def outdated(self, min_used: float = 0.5) -> list[str]:
        """Return the archives to merge: those under SMALL bytes, or with a share of current bytes below `min_used`."""
        counts = dict.fromkeys(self.parts, 0)
        for file in self.files.values():
            counts[file.part] += file.size
        return [
            name
            for name, archive in self.parts.items()
            if archive.payload < SMALL or counts[name] < min_used * archive.payload
        ]


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_indexes(text: Callable[[str], str]) -> list[Index]:
    """Read the index files on Drive, and return at most two indexes whose SHA-256 verifies, the newest first.

    `text` returns a file's text by its name. Files are read by name, and by Drive's names for second copies, since a
    listing may be stale.
    """
    found = [_parse(text(name)) for slot in SLOTS for name in copies(slot)]
    of_generation: dict[int, Index] = {}
    for index in (index for index in found if index):
        of_generation.setdefault(index.generation, index)
    return [of_generation[number] for number in sorted(of_generation, reverse=True)[: len(SLOTS)]]


def newest_change(text: Callable[[str], str]) -> int:
    """Return the newest modification time (ns) of a run's files in its mirror's indexes, or 0 without an index."""
    files = [file for index in read_indexes(text) for file in index.files.values()]
    return max((file.mtime_ns for file in files), default=0)


def copies(name: str) -> Iterator[str]:
    """Yield a file name, and the name that Drive gives a second file of that name: `a.json`, `a (1).json`."""
    path = Path(name)
    yield name
    yield path.with_name(f"{path.stem} (1){path.suffix}").as_posix()


def _parse(text: str) -> Index | None:
    try:
        read = json.loads(text)
        body = read["index"]
        if _digest(body) != read["sha256"]:
            return None
        kinds = (("files", File), ("parts", Archive), ("folders", Folder))
        made = {key: {n: kind(**v) for n, v in body[key].items()} for key, kind in kinds}
        return Index(int(body["generation"]), **made)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def backup_name(name: str) -> str:
    """Return the name to which a folder's old version on Drive is renamed until the new version is complete."""
    above, _, last = name.rpartition("/")
    return f"{above}/.{last}.old" if above else f".{last}.old"


def is_of_series(name: str) -> bool:
    """Whether a folder's name ends in a step number, as a checkpoint's does and a model's does not."""
    return re.search(r"-\d{6,}$", name) is not None


def newest_first(folders: dict[str, Folder], here: Collection[str] = ()) -> list[str]:
    """Sort folder names by age, the newest first; checkpoints by step number, since clocks differ between machines.

    Series and single folders are ordered by the newest time in each. Numbers above all that are `here` belong to an
    earlier training and come last.
    """
    series = {name: name.rpartition("-")[0] if is_of_series(name) else name for name in folders}
    written = {
        s: max(folders[n].mtime_ns for n in series if series[n] == s) for s in {*series.values()}
    }
    reached = {series[name]: _number(name) for name in sorted(here, key=_number) if name in series}

    def order(name: str) -> tuple[bool, int, str, int]:
        s = series[name]
        is_earlier = name not in here and _number(name) > reached.get(s, _number(name))
        return not is_earlier, written[s], s, _number(name)

    return sorted(folders, key=order, reverse=True)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2]) if is_of_series(name) else 0


def is_hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)
