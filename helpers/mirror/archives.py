"""Store a run's small files on Google Drive as a few tar archives, and an index that lists the files.

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
from dataclasses import replace
from pathlib import Path

from helpers.core.files import MANIFEST, is_inside, on_disk, read_json
from helpers.mirror.drive import Drive, NotMirrored
from helpers.mirror.index import Archive, File, Folder, Index, copies, is_hidden, is_of_series

ARCHIVE_BYTES = 64_000_000  # of an archive, about
MAX_FILE_BYTES = 500_000_000  # of a file in one: archives are made in memory


def list_small(source: Path, apart: set[str]) -> dict[str, os.stat_result]:
    """Return a run's small files as {name: os.stat_result}, without links, temporary files and excluded folders.

    A file is temporary if its name, or that of a folder above it, starts with a dot.
    """
    found = {}
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if is_hidden(name) or parents_of(name.as_posix()) & apart:
            continue
        if path.is_file() and not path.is_symlink():
            with suppress(FileNotFoundError):  # replaced meanwhile
                found[name.as_posix()] = path.stat()
    return found


def find_unmirrorable(source: Path, found: dict[str, os.stat_result]) -> dict[str, str]:
    """Return the files and folders that must not go into an archive, as {name: reason}."""
    why = {}
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if not is_hidden(name) and not is_inside(path, source):
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


def _first_incomplete(manifest: Path) -> Path | None:
    with suppress(AttributeError, KeyError, OSError, TypeError, ValueError):  # of a damaged one
        for file, entry in read_json(manifest).items():
            path = manifest.parent / file
            if not path.is_file() or path.stat().st_size != entry["size"]:
                return path
    return None


def read_small(path: Path) -> bytes:
    """Read a file's content. If a .jsonl log ends with a half-written line, that line is left out."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        end = content.rfind(b"\n") + 1
        try:
            json.loads(content[end:])
        except ValueError:
            return content[:end]
    return content


def batches(sizes: dict[str, int]) -> Iterator[list[str]]:
    """Yield groups of file names with at most ARCHIVE_BYTES per group. A larger file is a group of its own."""
    group: list[str] = []
    for name, size in sizes.items():
        if group and sum(sizes[n] for n in group) + size > ARCHIVE_BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def unpack(tar_path: Path, wanted: dict[str, File], target: Path) -> None:
    """Extract the wanted files from a tar archive to a folder. Files with a wrong size or SHA-256 are skipped.

    Everything else in the archive is ignored, and so is the rest of a damaged one.
    """
    with suppress(tarfile.TarError), tarfile.open(tar_path) as tar:
        for member in tar:
            file = wanted.get(member.name)
            if file is None or not member.isreg() or member.size != file.size:
                continue
            content, path = tar.extractfile(member).read(), target / member.name
            if hashlib.sha256(content).hexdigest() == file.sha256:
                with on_disk("write", path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


class ArchiveSet:
    """The tar archives on Drive that hold a run's small files, and the index that lists the files."""

    def __init__(self, source: Path, drive: Drive) -> None:
        self.source, self.drive = source, drive
        self.published = Index.read_all(drive.text)[::-1]  # at most two, the newest last
        self.index = deepcopy(self.published[-1]) if self.published else Index()
        self.seen: dict[str, tuple[int, int]] = {}  # size and time (ns) of each file when last read
        self.unread: list[NotMirrored] = []  # files here that this round could not read

    def copy(
        self,
        found: dict[str, os.stat_result],
        folders: dict[str, Folder],
        broken: Set[str] = frozenset(),
    ) -> list[NotMirrored]:
        """Copy changed files to Drive in new archives, update the index, and return the errors of files that failed.

        `found` are all small files here, `folders` what else the index lists. Drive's copies of the `broken` folders
        stay as they are. Raises NotMirrored or OSError if Drive fails.
        """
        self.unread = []
        self._drop(found, broken)
        corrupt = self.index.files_of(self._corrupt())
        changed = {name for name, stat in found.items() if self._is_changed(name, stat)}
        if changed := changed | found.keys() & corrupt:
            self._add(changed, found)
        self.publish(folders)
        lost = sorted(corrupt - found.keys())
        words = f"{len(lost)} files that are not here do not verify in the mirror ({', '.join(lost[:1])})"
        return [*self.unread, *([NotMirrored(words)] if lost else [])]

    def _drop(self, found: dict[str, os.stat_result], broken: Set[str]) -> None:
        complete = {name.rsplit("/", 1)[0] for name in found if name.endswith(f"/{MANIFEST}")}
        for name in self.index.files.keys() - found.keys():
            # files that were never here stay listed
            if not {name, *parents_of(name)} & broken and (
                self.seen.pop(name, None) or parents_of(name) & complete
            ):
                del self.index.files[name]

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
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
        used = {file.part for file in self.index.files.values()}
        unread = {(name, self.index.parts[name].sha256) for name in used} - self.drive.verified
        return [name for name, sha256 in unread if not self.drive.verify(name, sha256)]

    def _add(
        self, names: set[str], found: dict[str, os.stat_result], min_used: float = 0.5
    ) -> None:
        # small or mostly outdated archives go into the new ones
        merged = self.index.files_of(self.index.outdated(min_used))
        sizes = {name: found[name].st_size for name in sorted(names | merged & found.keys())}
        try:
            for group in batches(sizes):
                self._write(group)
        except BaseException:
            for name in sizes:
                self.seen.pop(name, None)  # to be looked at again
            raise

    def _write(self, names: list[str]) -> None:
        made, read = io.BytesIO(), {}
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, mtime_ns, content in self._read(names):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                read[name] = (len(content), hashlib.sha256(content).hexdigest(), mtime_ns)
        content = made.getvalue()
        sha256 = hashlib.sha256(content).hexdigest()
        part = f"parts/{sha256[:16]}.tar"
        self.drive.put_bytes(part, content)
        self.index.files |= {name: File(*values, part) for name, values in read.items()}
        self.index.parts[part] = Archive(len(content), sha256, sum(v[0] for v in read.values()))

    def publish(self, folders: dict[str, Folder], force: bool = False) -> None:
        """Write the index over the older of two index files on Drive, and delete archives that neither file lists."""
        used = {file.part for file in self.index.files.values()}
        parts = {name: archive for name, archive in self.index.parts.items() if name in used}
        self.index = replace(self.index, parts=parts, folders=dict(folders))
        is_new = force or self.published[-1:] != [self.index]
        index = replace(self.index, generation=self.index.generation + is_new)
        self.drive.put_bytes(index.slot(), index.dump())
        if not is_new:
            return
        self.index = index
        before, self.published = self.published, [*self.published[-1:], deepcopy(index)]
        for name in before[0].parts if before else ():
            if not any(name in index.parts for index in self.published):
                for copy in copies(name):
                    self.drive.remove(copy)

    def purge(self, found: dict[str, os.stat_result], folders: dict[str, Folder]) -> None:
        """Remove every small file that no longer exists locally from Drive's archives and from both index files."""
        self.index.files = {n: file for n, file in self.index.files.items() if n in found}
        for problem in self.copy(found, folders):
            raise problem
        self._add(set(), found, min_used=1.0)
        for _ in range(2):
            self.publish(folders, force=True)
            self.drive.remove(copies(self.index.slot())[1])
