"""A run's small files on Drive: a few tar files that never change, under an index of what lies in which.

Drive is slow with thousands of small files and takes its rate limit for a full disk. A change makes one more part;
small or mostly outdated parts are folded into it, and go when neither slot of the index names them any more.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

from helpers.drive import NotKept, Uploads
from helpers.index import File, Folder, Index, Part, is_hidden, read_indexes
from helpers.store import MANIFEST

LARGE = 64_000_000  # bytes of a part, about


def list_small(source: Path, apart: set[str]) -> dict[str, os.stat_result]:
    """The small files of a run's folder, by name, as they are now.

    Work in progress (a leading dot), links, and what lies in a folder of `apart` are left out.
    """
    found = {}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        above = {parent.as_posix() for parent in name.parents}
        if not is_hidden(name) and not above & apart and path.is_file() and not path.is_symlink():
            with suppress(FileNotFoundError):  # replaced meanwhile
                found[name.as_posix()] = path.stat()
    return found


def read_small(path: Path) -> bytes:
    """A file's content; of a log that is being written, its whole lines."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1] if path.suffix == ".jsonl" else content


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


def pack(source: Path, names: Iterable[str]) -> tuple[str, Part, bytes, dict[str, File]]:
    """Make a part of the named files: its name (of its content), what it is, its bytes, and its files."""
    made, read = io.BytesIO(), {}
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            try:
                stat, content = (source / name).stat(), read_small(source / name)
            except FileNotFoundError:
                continue  # gone meanwhile
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            read[name] = (len(content), hashlib.sha256(content).hexdigest(), stat.st_mtime_ns)
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

    def copy(self, found: dict[str, os.stat_result], folders: dict[str, Folder]) -> None:
        """Have Drive hold the files found, and an index that names them and `folders`.

        Raises NotKept or OSError if it does not.
        """
        self._drop(found)
        lost = [name for part in self._bad_parts() for name in self.index.of_part(part)]
        changed = {name for name, stat in found.items() if self._is_changed(name, stat)}
        changed |= found.keys() & set(lost)
        if changed:
            self._add(changed, found)
        self.publish(folders)
        if gone := [name for name in lost if name not in found]:
            raise NotKept(
                f"{len(gone)} files that are not here do not verify on Google Drive ({gone[0]})"
            )

    def _drop(self, found: dict[str, os.stat_result]) -> None:
        """Take out of the index what was here and is no longer; what never came here stays."""
        complete = {name.rsplit("/", 1)[0] for name in found if name.endswith(f"/{MANIFEST}")}
        for name in self.index.files.keys() - found.keys():
            above = {parent.as_posix() for parent in Path(name).parents}
            if self.seen.pop(name, None) or above & complete:
                del self.index.files[name]

    def _is_changed(self, name: str, stat: os.stat_result) -> bool:
        if self.seen.get(name) == (stat.st_size, stat.st_mtime_ns):
            return False
        try:
            content = read_small(self.source / name)
        except FileNotFoundError:
            return False  # gone meanwhile
        self.seen[name] = (stat.st_size, stat.st_mtime_ns)
        known = self.index.files.get(name)
        return known is None or known.sha256 != hashlib.sha256(content).hexdigest()

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
                name, part, content, files = pack(self.source, group)
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
                self.drive.remove(name)

    def purge(self, found: dict[str, os.stat_result], folders: dict[str, Folder]) -> None:
        """Have nothing on Drive that is not here: not in a part, nor by the older index."""
        self.index.files = {n: file for n, file in self.index.files.items() if n in found}
        self.copy(found, folders)
        self._add(set(), found, least=1.0)
        for _ in range(2):
            self.publish(folders, anew=True)
