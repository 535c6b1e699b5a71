"""What a run's mirror consists of, at one moment: the index on Drive, written last and read first.

It has two slots, written in turn, each with its own SHA-256: a write that was lost, cut or renamed leaves the
other, and what that names is still there.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SLOTS = ("kept-0.json", "kept-1.json")
SMALL = 8_000_000  # bytes; a part below this is folded into the next


@dataclass(frozen=True)
class File:
    """A small file: its content, when it was written (ns), and the part that it lies in."""

    size: int
    sha256: str
    mtime_ns: int
    part: str


@dataclass(frozen=True)
class Part:
    """A tar file on Drive; `payload` is the size of the files that it was made of."""

    size: int
    sha256: str
    payload: int


@dataclass(frozen=True)
class Folder:
    """A folder that keeps its shape on Drive: the SHA-256 and the time of its manifest, and its size."""

    sha256: str
    mtime_ns: int
    size: int


@dataclass
class Index:
    """What a run consists of, at one moment."""

    generation: int = 0
    files: dict[str, File] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)

    def slot(self) -> str:
        return SLOTS[self.generation % 2]

    def dump(self) -> bytes:
        body = asdict(self)
        return json.dumps({"sha256": _digest(body), "index": body}).encode()

    def of_part(self, part: str) -> list[str]:
        return [name for name, file in self.files.items() if file.part == part]

    def outdated(self, least: float = 0.5) -> list[str]:
        """The parts to be folded into the next: small ones, and those of which less than `least` still counts."""
        counts = dict.fromkeys(self.parts, 0)
        for file in self.files.values():
            counts[file.part] += file.size
        return [
            name
            for name, part in self.parts.items()
            if part.payload < SMALL or counts[name] < least * part.payload
        ]


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_indexes(text: Callable[[str], str]) -> list[Index]:
    """The newest two indexes that verify, the newest first, by what gives a file's text.

    Read by name, and by what Drive may have made of it: a listing may be old.
    """
    found = [_parse(text(name)) for slot in SLOTS for name in copies(slot)]
    of_generation: dict[int, Index] = {}
    for index in (index for index in found if index):
        of_generation.setdefault(index.generation, index)
    return [of_generation[number] for number in sorted(of_generation, reverse=True)[: len(SLOTS)]]


def copies(name: str) -> Iterator[str]:
    """A name, and what Drive calls a second file of that name."""
    path = Path(name)
    yield name
    yield path.with_name(f"{path.stem} (1){path.suffix}").as_posix()


def _parse(text: str) -> Index | None:
    try:
        read = json.loads(text)
        body = read["index"]
        if _digest(body) != read["sha256"]:
            return None
        kinds = (("files", File), ("parts", Part), ("folders", Folder))
        made = {key: {n: kind(**v) for n, v in body[key].items()} for key, kind in kinds}
        return Index(int(body["generation"]), **made)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def aside(name: str) -> str:
    """Where a folder's former version waits until the new one is kept."""
    above, _, last = name.rpartition("/")
    return f"{above}/.{last}.old" if above else f".{last}.old"


def is_of_series(name: str) -> bool:
    """Whether a folder is one of several that follow one another, as checkpoints do; a model stands alone."""
    return re.search(r"-\d{6,}$", name) is not None


def newest_first(folders: dict[str, Folder], here: Collection[str] = ()) -> list[str]:
    """Names of folders, those of a series by their number, whatever a clock said when they were written.

    Series and single folders come by the time of the newest that each has. Those of a series that are not `here` and
    are ahead of all that are, an earlier training's, come last.
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
