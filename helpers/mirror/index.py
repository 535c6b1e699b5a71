"""The index of a run's mirror on Drive: a JSON file that lists all mirrored files, archives and folders.

It is written last and read first. Two slots are written in turn, each with its own SHA-256: if a write is lost, cut off
or renamed, the other slot is intact, and so are the files that it lists. The names of its fields are JSON keys on
users' Drives, and stay.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection
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
    """A tar archive in the index. `payload` is the total size in bytes of the files packed into it."""

    size: int
    sha256: str
    payload: int


@dataclass(frozen=True)
class Folder:
    """A checkpoint or model folder in the index: the folder's size, and the SHA-256 and time (ns) of its manifest."""

    sha256: str
    mtime_ns: int
    size: int


@dataclass
class Index:
    """A list of the files, archives (`parts`) and folders that a run's mirror holds at one moment."""

    generation: int = 0
    files: dict[str, File] = field(default_factory=dict)
    parts: dict[str, Archive] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)

    def slot(self) -> str:
        return SLOTS[self.generation % 2]

    def dump(self) -> bytes:
        body = asdict(self)
        return json.dumps({"sha256": _digest(body), "index": body}).encode()

    @staticmethod
    def read_all(text: Callable[[str], str]) -> list["Index"]:
        """Read the two index files on Drive, and return the valid ones, the newest first.

        `text` returns a file's text by its name. Drive's names for second copies are read too: a listing may be stale.
        """
        found = [_parse(text(name)) for slot in SLOTS for name in copies(slot)]
        valid = {index.generation: index for index in reversed(found) if index}
        return [valid[number] for number in sorted(valid, reverse=True)[: len(SLOTS)]]

    def newest_change(self) -> int:
        """Return the newest modification time of its small files, in ns."""
        return max((file.mtime_ns for file in self.files.values()), default=0)

    def files_of(self, archives: Collection[str]) -> set[str]:
        return {name for name, file in self.files.items() if file.part in archives}

    def outdated(self, min_used: float) -> list[str]:
        """Return the archives to merge: small ones, and those with less than the fraction `min_used` still in use."""
        used = Counter()
        for file in self.files.values():
            used[file.part] += file.size
        return [
            name
            for name, archive in self.parts.items()
            if archive.payload < SMALL or used[name] < min_used * archive.payload
        ]


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def copies(name: str) -> tuple[str, str]:
    """Return a file's name, and the name that Drive gives to a second copy: `a (1).json` for `a.json`."""
    path = Path(name)
    return name, path.with_name(f"{path.stem} (1){path.suffix}").as_posix()


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
    """Return the name under which Drive keeps a folder's old version until the new version is complete."""
    return Path(name).with_name(f".{Path(name).name}.old").as_posix()


def is_of_series(name: str) -> bool:
    """Return True if a folder's name ends with a training step, such as `step-000100`."""
    return re.search(r"-\d{6,}$", name) is not None


def newest_first(folders: dict[str, Folder], here: Collection[str] = ()) -> list[str]:
    """Sort folder names from newest to oldest. Checkpoints are sorted by step number, since machines' clocks differ.

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
