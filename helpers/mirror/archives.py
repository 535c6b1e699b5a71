"""A run's small files on Drive: a few tar files that never change, under an index of what lies in which.

Drive is slow with thousands of small files and takes its rate limit for a full disk. A change makes one more part;
small or mostly outdated parts are folded into it, and go when neither slot of the index names them any more.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

from helpers.core.files import MANIFEST, read_json
from helpers.mirror.drive import NotKept, Uploads
from helpers.mirror.index import (
    SLOTS,
    File,
    Folder,
    Index,
    Part,
    copies,
    is_hidden,
    is_of_series,
    read_indexes,
)

LARGE = 64_000_000  # bytes of a part, about
LARGEST = 500_000_000  # bytes of a file in one: it is made in memory


def list_small(source: Path, apart: set[str]) -> dict[str, os.stat_result]:
    """The small files of a run's folder, by name, as they are now.

    Work in progress (a leading dot), links, and what lies in a folder of `apart` are left out.
    """
    found = {}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if (
            not is_hidden(name)
            and not above(name.as_posix()) & apart
            and path.is_file()
            and not path.is_symlink()
        ):
            with suppress(FileNotFoundError):  # replaced meanwhile
                found[name.as_posix()] = path.stat()
    return found


def unfit(source: Path, found: dict[str, os.stat_result]) -> dict[str, str]:
    """What of a run no part can hold as it is, and why: its names, of files and folders."""
    why = {}
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_symlink() and not is_hidden(name) and not _is_inside(path, source):
            why[name.as_posix()] = f"{path} is a link: put what it leads to in its place"
    for name, stat in found.items():
        if stat.st_size > LARGEST:
            why[name] = f"{source / name} is too large for the mirror: move it elsewhere"
        for folder in above(name):
            if is_of_series(folder):
                why[folder] = f"{source / folder} has no {MANIFEST}: move that folder away"
        if name.endswith(f"/{MANIFEST}") and (file := _lacks(source / name)):
            why[name.rpartition("/")[0]] = f"{file} is not what {MANIFEST} says"
    return why


def above(name: str) -> set[str]:
    """The names of the folders that a file lies in."""
    return {parent.as_posix() for parent in Path(name).parents}


def _is_inside(path: Path, source: Path) -> bool:
    return path.resolve().is_relative_to(source.resolve())


def _lacks(manifest: Path) -> Path | None:
    """The first file of a folder, such as the dataset, that is not there as its manifest lists it."""
    with suppress(AttributeError, KeyError, OSError, TypeError, ValueError):
        for file, entry in read_json(manifest).items():
            path = manifest.parent / file
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return path
    return None


def read_small(path: Path) -> bytes:
    """A file's content; of a log that is being written, its whole lines."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if path.suffix != ".jsonl" or whole == len(content):
        return content
    try:
        json.loads(content[whole:])
    except ValueError:
        return content[:whole]
    return content


def batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """The names in groups of about LARGE bytes."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[n] for n in group) + size > LARGE:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def pack(found: Iterable[tuple[str, int, bytes]]) -> tuple[str, Part, bytes, dict[str, File]]:
    """Make a part of files, each a name, a time and its content: its name (of its content), itself, and its files."""
    made, read = io.BytesIO(), {}
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime_ns, content in found:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            read[name] = (len(content), hashlib.sha256(content).hexdigest(), mtime_ns)
    content = made.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    part = f"parts/{sha256[:16]}.tar"
    files = {name: File(*values, part) for name, values in read.items()}
    return part, Part(len(content), sha256, sum(f.size for f in files.values())), content, files


def unpack(tar_path: Path, wanted: dict[str, File]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of a part, each with the content that the index promises; whatever else is in it stays there.

    A name that leads out of the folder is no name of ours (`tarfile.data_filter` refuses it), nor is a link.
    """
    with tarfile.open(tar_path) as tar:
        for member in tar:
            file = wanted.get(member.name)
            if file is None or not member.isreg() or member.size != file.size:
                continue
            tarfile.data_filter(member, str(tar_path.parent))
            content = tar.extractfile(member).read()
            if hashlib.sha256(content).hexdigest() == file.sha256:
                yield member.name, content


class Parts:
    """The small files of a run and its index, as they are on Drive and as they are brought there."""

    def __init__(self, source: Path, uploads: Uploads) -> None:
        self.source, self.uploads, self.drive = source, uploads, uploads.drive
        self.published = read_indexes(self.drive.text)[::-1]  # at most two, the newest last
        self.index = deepcopy(self.published[-1]) if self.published else Index()
        self.seen: dict[str, tuple[int, int]] = {}  # size and time (ns) of each file when last read
        self.unread: list[NotKept] = []  # files here that this round could not read

    def copy(
        self,
        found: dict[str, os.stat_result],
        folders: dict[str, Folder],
        broken: Set[str] = frozenset(),
    ) -> list[NotKept]:
        """Have Drive hold the files found, and an index that names them and `folders`; what of them it cannot hold.

        What it has of the `broken` folders stays as it is. Raises NotKept or OSError if Drive fails.
        """
        self.unread = []
        self._drop(found, broken)
        lost = [name for part in self._bad_parts() for name in self.index.of_part(part)]
        changed = {name for name, stat in found.items() if self._is_changed(name, stat)}
        changed |= found.keys() & set(lost)
        if changed:
            self._add(changed, found)
        self.publish(folders)
        gone = [name for name in lost if name not in found]
        words = f"{len(gone)} files that are not here do not verify on Google Drive ({', '.join(gone[:1])})"
        return [*self.unread, *([NotKept(words)] if gone else [])]

    def _drop(self, found: dict[str, os.stat_result], broken: Set[str]) -> None:
        """Take out of the index what was here and is no longer; what never came here stays."""
        complete = {name.rsplit("/", 1)[0] for name in found if name.endswith(f"/{MANIFEST}")}
        for name in self.index.files.keys() - found.keys():
            if not {name, *above(name)} & broken and (
                self.seen.pop(name, None) or above(name) & complete
            ):
                del self.index.files[name]

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """The named files that can be read: name, time and content."""
        for name in names:
            path = self.source / name
            try:
                yield name, path.stat().st_mtime_ns, read_small(path)
            except FileNotFoundError:
                continue  # gone meanwhile
            except OSError as error:
                what = f"{path} cannot be read here ({error.strerror}): move it away"
                self.unread.append(NotKept(f"{what}, then run keep(here)"))
                self.seen.pop(name, None)

    def _is_changed(self, name: str, stat: os.stat_result) -> bool:
        if self.seen.get(name) == (stat.st_size, stat.st_mtime_ns):
            return False
        for _, _, content in self._read([name]):
            self.seen[name] = (stat.st_size, stat.st_mtime_ns)
            known = self.index.files.get(name)
            return known is None or known.sha256 != hashlib.sha256(content).hexdigest()
        return False

    def _bad_parts(self) -> list[str]:
        """The parts that Drive does not hold; each is read once, or again where `good` was emptied."""
        bad = []
        for name in {file.part for file in self.index.files.values()}:
            part = self.index.parts[name]
            if (name, part.sha256) in self.uploads.good:
                continue
            if self.drive.holds(name, part.size, part.sha256) and self.drive.is_uploaded(name):
                self.uploads.good.add((name, part.sha256))
            else:
                bad.append(name)
        return bad

    def _add(self, names: set[str], found: dict[str, os.stat_result], least: float = 0.5) -> None:
        """Make parts of the named files and of those in outdated parts."""
        folded = {name for part in self.index.outdated(least) for name in self.index.of_part(part)}
        sizes = {name: found[name].st_size for name in sorted(names | folded & found.keys())}
        try:
            for group in batches(sizes):
                name, part, content, files = pack(self._read(group))
                self.uploads.put(name, part.size, part.sha256, lambda tar=content: [tar])
                self.index.parts[name] = part
                self.index.files |= files
        except BaseException:
            for name in sizes:
                self.seen.pop(name, None)  # to be looked at again
            raise

    def publish(self, folders: dict[str, Folder], anew: bool = False) -> None:
        """Write the index into the older slot if it says anything new, then let go what no slot names."""
        self.index.folders = dict(folders)
        used = {file.part for file in self.index.files.values()}
        self.index.parts = {n: part for n, part in self.index.parts.items() if n in used}
        if not anew and self.published and self.index == self.published[-1]:
            self.uploads.put_bytes(self.index.slot(), self.index.dump())
            return
        self.index.generation += 1
        try:
            self.uploads.put_bytes(self.index.slot(), self.index.dump())
        except BaseException:
            self.index.generation -= 1
            raise
        before, self.published = self.published, [*self.published[-1:], deepcopy(self.index)]
        for name in before[0].parts if before else ():
            if not any(name in index.parts for index in self.published):
                self._remove(name)

    def purge(self, found: dict[str, os.stat_result], folders: dict[str, Folder]) -> None:
        """Have nothing on Drive that is not here: not in a part, nor by the older index."""
        self.index.files = {n: file for n, file in self.index.files.items() if n in found}
        for problem in self.copy(found, folders):
            raise problem
        self._add(set(), found, least=1.0)
        for slot in SLOTS:
            self.publish(folders, anew=True)
            self.drive.remove([*copies(slot)][1])

    def _remove(self, name: str) -> None:
        """Have Drive let go of a file, under whatever names it keeps it."""
        for copy in copies(name):
            self.drive.remove(copy)
