"""Store a run's small files on Drive in a few tar archives that never change, with an index of their content.

Drive is slow with thousands of small files and reports its rate limit as a full disk. A change makes one new archive;
small or mostly outdated archives are merged into it, and deleted once neither slot of the index lists them.

tarfile and this index, rather than a backup program or a database file: Drive replaces files as a whole, may keep an
old version of one, and a person can still unpack a tar by hand.
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
from helpers.mirror.drive import NotMirrored, Uploads
from helpers.mirror.index import (
    SLOTS,
    Archive,
    File,
    Folder,
    Index,
    copies,
    is_hidden,
    is_of_series,
    read_indexes,
)

ARCHIVE_BYTES = 64_000_000  # of an archive, about
MAX_FILE_BYTES = 500_000_000  # of a file in one: archives are made in memory


def list_small(source: Path, apart: set[str]) -> dict[str, os.stat_result]:
    """Return {name: os.stat_result} of a run's files outside the folders `apart`, except temporary files and links.

    A file is temporary if its name, or that of a folder above it, starts with a dot.
    """
    found = {}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if (
            not is_hidden(name)
            and not parents_of(name.as_posix()) & apart
            and path.is_file()
            and not path.is_symlink()
        ):
            with suppress(FileNotFoundError):  # replaced meanwhile
                found[name.as_posix()] = path.stat()
    return found


def find_unmirrorable(source: Path, found: dict[str, os.stat_result]) -> dict[str, str]:
    """Return the files and folders that must not go into an archive, as {name: reason}."""
    why = {}
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_symlink() and not is_hidden(name) and not _is_inside(path, source):
            why[name.as_posix()] = f"{path} is a link: replace it by what it links to"
    for name, stat in found.items():
        if stat.st_size > MAX_FILE_BYTES:
            why[name] = f"{source / name} is too large for the mirror: move it elsewhere"
        for folder in parents_of(name):
            if is_of_series(folder):
                why[folder] = f"{source / folder} has no {MANIFEST}: move that folder away"
        if name.endswith(f"/{MANIFEST}") and (file := _first_incomplete(source / name)):
            why[name.rpartition("/")[0]] = f"{file} is not what {MANIFEST} says"
    return why


def parents_of(name: str) -> set[str]:
    """Return the names of all folders above a file."""
    return {parent.as_posix() for parent in Path(name).parents}


def _is_inside(path: Path, source: Path) -> bool:
    return path.resolve().is_relative_to(source.resolve())


def _first_incomplete(manifest: Path) -> Path | None:
    """Return the first file in a manifest that is missing or of another size, or None if all are complete.

    None also if the manifest is damaged.
    """
    with suppress(AttributeError, KeyError, OSError, TypeError, ValueError):
        for file, entry in read_json(manifest).items():
            path = manifest.parent / file
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return path
    return None


def read_small(path: Path) -> bytes:
    """Read a file's content, without the half-written last line of a .jsonl log."""
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if path.suffix != ".jsonl" or complete == len(content):
        return content
    try:
        json.loads(content[complete:])
    except ValueError:
        return content[:complete]
    return content


def batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield groups of file names: files with at most ARCHIVE_BYTES in total, or one larger file."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[n] for n in group) + size > ARCHIVE_BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def pack(found: Iterable[tuple[str, int, bytes]]) -> tuple[str, Archive, bytes, dict[str, File]]:
    """Pack files, each given as (name, mtime in ns, content), into a tar archive in memory.

    Returns the archive's name (by its content), its entry in the index, its bytes, and its files' entries.
    """
    made, read = io.BytesIO(), {}
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime_ns, content in found:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            read[name] = (len(content), hashlib.sha256(content).hexdigest(), mtime_ns)
    content = made.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"parts/{sha256[:16]}.tar"
    files = {file: File(*values, name) for file, values in read.items()}
    archive = Archive(len(content), sha256, sum(f.size for f in files.values()))
    return name, archive, content, files


def unpack(tar_path: Path, wanted: dict[str, File]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each wanted file in a tar archive, if the file's size and SHA-256 match `wanted`.

    Everything else is ignored. Links are skipped, and `tarfile.data_filter` refuses a name that leads out of the
    folder.
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


class ArchiveSet:
    """A run's tar archives of small files on Drive, and the index that lists them."""

    def __init__(self, source: Path, uploads: Uploads) -> None:
        self.source, self.uploads, self.drive = source, uploads, uploads.drive
        self.published = read_indexes(self.drive.text)[::-1]  # at most two, the newest last
        self.index = deepcopy(self.published[-1]) if self.published else Index()
        self.seen: dict[str, tuple[int, int]] = {}  # size and time (ns) of each file when last read
        self.unread: list[NotMirrored] = []  # files here that this round could not read

    def copy(
        self,
        found: dict[str, os.stat_result],
        folders: dict[str, Folder],
        broken: Set[str] = frozenset(),
    ) -> list[NotMirrored]:
        """Copy changed files to Drive in new archives, write the index, and return the errors of single files.

        `found` are all small files here, `folders` what else the index lists. Drive's copies of the `broken` folders
        stay as they are. Raises NotMirrored or OSError if Drive fails.
        """
        self.unread = []
        self._drop(found, broken)
        corrupt = [name for archive in self._corrupt() for name in self.index.files_of(archive)]
        changed = {name for name, stat in found.items() if self._is_changed(name, stat)}
        changed |= found.keys() & set(corrupt)
        if changed:
            self._add(changed, found)
        self.publish(folders)
        lost = [name for name in corrupt if name not in found]
        words = f"{len(lost)} files that are not here do not verify in the mirror ({', '.join(lost[:1])})"
        return [*self.unread, *([NotMirrored(words)] if lost else [])]

    def _drop(self, found: dict[str, os.stat_result], broken: Set[str]) -> None:
        """Remove from the index the files that were deleted on this machine.

        Files that were never here stay.
        """
        complete = {name.rsplit("/", 1)[0] for name in found if name.endswith(f"/{MANIFEST}")}
        for name in self.index.files.keys() - found.keys():
            if not {name, *parents_of(name)} & broken and (
                self.seen.pop(name, None) or parents_of(name) & complete
            ):
                del self.index.files[name]

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield (name, mtime in ns, content) of each named file that can be read."""
        for name in names:
            path = self.source / name
            try:
                yield name, path.stat().st_mtime_ns, read_small(path)
            except FileNotFoundError:
                continue  # deleted meanwhile
            except OSError as error:
                what = f"{path} cannot be read here ({error.strerror}): move it away"
                self.unread.append(NotMirrored(f"{what}, then run sync(here)"))
                self.seen.pop(name, None)

    def _is_changed(self, name: str, stat: os.stat_result) -> bool:
        if self.seen.get(name) == (stat.st_size, stat.st_mtime_ns):
            return False
        for _, _, content in self._read([name]):
            self.seen[name] = (stat.st_size, stat.st_mtime_ns)
            known = self.index.files.get(name)
            return known is None or known.sha256 != hashlib.sha256(content).hexdigest()
        return False

    def _corrupt(self) -> list[str]:
        """Return the names of archives that fail verification on Drive.

        Each is read once, or again after `verified` was cleared.
        """
        corrupt = []
        for name in {file.part for file in self.index.files.values()}:
            archive = self.index.parts[name]
            key = (name, archive.sha256)
            if key in self.uploads.verified:
                continue
            if self.drive.holds(name, archive.size, archive.sha256) and self.drive.is_uploaded(
                name
            ):
                self.uploads.verified.add(key)
            else:
                corrupt.append(name)
        return corrupt

    def _add(
        self, names: set[str], found: dict[str, os.stat_result], min_used: float = 0.5
    ) -> None:
        """Write the named files, and the local files of archives that are due for merging, to new archives on Drive."""
        merged = {n for name in self.index.outdated(min_used) for n in self.index.files_of(name)}
        sizes = {name: found[name].st_size for name in sorted(names | merged & found.keys())}
        try:
            for group in batches(sizes):
                name, archive, content, files = pack(self._read(group))
                self.uploads.put(name, archive.size, archive.sha256, lambda tar=content: [tar])
                self.index.parts[name] = archive
                self.index.files |= files
        except BaseException:
            for name in sizes:
                self.seen.pop(name, None)  # to be looked at again
            raise

    def publish(self, folders: dict[str, Folder], force: bool = False) -> None:
        """Write a changed index over the older of the two index files, then delete archives that neither file lists."""
        self.index.folders = dict(folders)
        used = {file.part for file in self.index.files.values()}
        self.index.parts = {n: archive for n, archive in self.index.parts.items() if n in used}
        if not force and self.published and self.index == self.published[-1]:
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
                for copy in copies(name):
                    self.drive.remove(copy)

    def purge(self, found: dict[str, os.stat_result], folders: dict[str, Folder]) -> None:
        """Delete from Drive's archives and both indexes every file that is not in `found`."""
        self.index.files = {n: file for n, file in self.index.files.items() if n in found}
        for problem in self.copy(found, folders):
            raise problem
        self._add(set(), found, min_used=1.0)
        for slot in SLOTS:
            self.publish(folders, force=True)
            self.drive.remove([*copies(slot)][1])
