"""Restore a run from its mirror on Drive: every file that is missing or outdated on this machine.

A file is taken only if it is, byte for byte, what an index on Drive says: the newest index of which every file is
available, or else what is available of the newest. A file that does not verify is named and left out.
"""

import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.files import (
    MANIFEST,
    find_corruption,
    locked,
    on_disk,
    replace_folder,
    replacing_file,
    replacing_folder,
    sha256,
)
from helpers.mirror.archives import unpack
from helpers.mirror.drive import Drive
from helpers.mirror.index import (
    SLOTS,
    File,
    Folder,
    Index,
    backup_name,
    copies,
    is_hidden,
    is_of_series,
    newest_first,
    read_indexes,
)


@dataclass
class Restored:
    """The result of a restore: the number of restored files, and the names of files that failed."""

    count: int = 0
    missing: list[str] = field(default_factory=list)


def restore_from(drive: Drive, source: Path, unwanted: frozenset[str] | None = None) -> Restored:
    """Restore from Drive the files that are missing or outdated in the local folder `source`.

    With `unwanted`, Drive is an earlier copy: no checkpoint is taken that this machine is past, nor images of those
    posts (shortcodes) or SHA-256.
    An unreadable file on Drive counts as corrupt. Raises OSError if Drive fails, and RunError if this machine's disk
    does, or if Drive holds a run without its index.
    """
    try:
        indexes = read_indexes(partial(_text, drive))
        if not indexes and unwanted is None:
            _refuse_missing_index(drive)
        if not indexes:
            return Restored()
        with _scratch(source) as scratch:
            if unwanted is not None:
                for index in indexes:
                    _leave_out(index, source, unwanted)
            return _restore(drive, source, scratch, indexes)
    except _DriveError as failed:
        raise failed.args[0] from None


def _leave_out(index: Index, source: Path, unwanted: frozenset[str]) -> None:
    """Take out of an earlier copy's index what was taken down since, and checkpoints before those that are here."""
    for name, file in list(index.files.items()):
        if {file.sha256, Path(name).stem.rpartition("_")[0]} & unwanted:
            del index.files[name]
    newest = {name.rpartition("-")[0]: name for name in sorted(index.folders) if is_of_series(name)}
    for name in list(index.folders):
        series = name.rpartition("-")[0]
        if is_of_series(name) and any(
            path.relative_to(source).as_posix() > newest[series]
            for path in source.glob(f"{series}-*")
        ):
            del index.folders[name]


@contextmanager
def _scratch(source: Path) -> Iterator[Path]:
    """Yield a path for a temporary folder, locked against other processes and deleted on exit.

    Two notebooks may share a machine.
    """
    place = source / ".restore"
    with locked(source / ".restore.lock"):
        shutil.rmtree(place, ignore_errors=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _refuse_missing_index(drive: Drive) -> None:
    """Raise RunError if Drive holds a folder with a manifest: there is a run, but its index is missing.

    A new index would replace the run's folders.
    """
    if drive.finds(MANIFEST):
        raise RunError(
            f"{drive.folder} holds a run, but neither {' nor '.join(SLOTS)}, which list what is in it: restore one "
            "from the bin there, or rename that folder and copy its checkpoints from it by hand"
        )


def _restore(drive: Drive, source: Path, scratch: Path, indexes: list[Index]) -> Restored:
    done, fetched = Restored(), _Fetched(drive, scratch)
    wanted = [_wanted(source, index) for index in indexes]
    complete = [
        all(fetched.archive(index, file.part) for file in files.values())
        for index, files in zip(indexes, wanted, strict=True)
    ]
    chosen = complete.index(True) if True in complete else 0
    _restore_small(fetched, indexes[chosen], wanted[chosen], source, done)
    have = {(name, file.sha256) for name, file in indexes[chosen].files.items()}
    done.missing += [name for name, file in wanted[0].items() if (name, file.sha256) not in have]
    folders = indexes[0 if _same_folders(indexes[0], indexes[chosen]) else chosen].folders
    known = {(n, folder.sha256) for index in indexes for n, folder in index.folders.items()}
    for name in newest_first(folders):
        _restore_folder(drive, source, name, folders[name], known, done)
    series = [name for name in newest_first(folders) if is_of_series(name)]
    if not any((source / name).is_dir() for name in series):
        done.missing += [name for name in series[:1] if name not in done.missing]
    return done


def _same_folders(one: Index, other: Index) -> bool:
    """Whether two indexes list the same manifests, by name and SHA-256, for folders of small files (the dataset's)."""
    manifests = [
        {name: file.sha256 for name, file in index.files.items() if name.endswith(f"/{MANIFEST}")}
        for index in (one, other)
    ]
    return manifests[0] == manifests[1]


# small files


def _wanted(source: Path, index: Index) -> dict[str, File]:
    """Return the small files of an index that are missing or outdated in the local folder `source`.

    A folder with a manifest is taken as a whole if its manifest is missing or older; if it is the same, its missing
    files are.
    """
    files = {name: file for name, file in index.files.items() if _is_inside(name)}
    older = {name: _is_older(source / name, file) for name, file in files.items()}
    same = {
        n: not older[n] and sha256(source / n) == f.sha256
        for n, f in files.items()
        if n.endswith(MANIFEST)
    }
    found = {}
    for name, file in files.items():
        manifests = [f"{above.as_posix()}/{MANIFEST}" for above in Path(name).parents]
        decides = next((m for m in manifests if m in files), name)
        if older[decides] or (not (source / name).is_file() and same[decides]):
            found[name] = file
    return found


def _is_older(path: Path, file: File | Folder) -> bool:
    if not path.is_file():
        return True
    return path.stat().st_mtime_ns < file.mtime_ns and sha256(path) != file.sha256


def _is_inside(name: str) -> bool:
    """Whether a name from Drive is relative, is not empty, and has no part that starts with a dot, such as `..`."""
    path = Path(name)
    return not path.is_absolute() and not is_hidden(path) and path.name not in ("", ".")


class _Fetched:
    """A cache of verified archives, each copied from Drive to this machine once."""

    def __init__(self, drive: Drive, scratch: Path) -> None:
        self.drive, self.scratch = drive, scratch
        self.paths: dict[tuple[str, str], Path | None] = {}

    def archive(self, index: Index, name: str) -> Path | None:
        archive = index.parts.get(name)
        if archive is None:
            return None
        key = (name, archive.sha256)
        if key not in self.paths:
            target = self.scratch / f"{archive.sha256}.tar"
            is_complete = _fetch(self.drive, name, archive.size, archive.sha256, target)
            self.paths[key] = target if is_complete else None
        return self.paths[key]


def _restore_small(
    fetched: _Fetched, index: Index, wanted: dict[str, File], source: Path, done: Restored
) -> None:
    """Unpack the wanted small files from their archives, and put them in place in the local run folder `source`.

    A folder with a manifest is replaced as a whole.
    """
    unpacked = fetched.scratch / "files"
    for part in sorted({file.part for file in wanted.values()}):
        of_part = {n: f for n, f in wanted.items() if f.part == part}
        if path := fetched.archive(index, part):
            _unpack(path, of_part, unpacked)
        else:  # a host may have unpacked it
            _copy_unpacked(fetched.drive, part, of_part, unpacked)
    folders = [
        name.removesuffix(f"/{MANIFEST}") for name in wanted if name.endswith(f"/{MANIFEST}")
    ]
    for folder in folders:
        names = [name for name in wanted if name.startswith(f"{folder}/")]
        if find_corruption(unpacked / folder) is None:
            replace_folder(unpacked / folder, source / folder)
            done.count += len(names)
        else:
            done.missing.append(folder)
    single = [n for n in wanted if not any(n.startswith(f"{folder}/") for folder in folders)]
    for name in single:
        if not (unpacked / name).is_file():
            done.missing.append(name)
            continue
        if not _continues(source / name, unpacked / name):
            with replacing_file(source / name) as tmp_path:
                shutil.copy2(unpacked / name, tmp_path)
            done.count += 1


def _copy_unpacked(drive: Drive, part: str, wanted: dict[str, File], target: Path) -> None:
    """Copy the wanted files of an archive from the folder that something unpacked it into, each one verified."""
    for name, file in wanted.items():
        for folder in (part, part.removesuffix(".tar")):
            if _fetch(drive, f"{folder}/{name}", file.size, file.sha256, target / name):
                os.utime(target / name, ns=(file.mtime_ns, file.mtime_ns))
                break


def _continues(path: Path, older: Path) -> bool:
    """Whether a local .jsonl log begins with the full content of an older copy.

    Clocks differ, but logs only grow.
    """
    return (
        path.suffix == ".jsonl"
        and path.is_file()
        and path.read_bytes().startswith(older.read_bytes())
    )


def _unpack(tar: Path, wanted: dict[str, File], target: Path) -> None:
    try:
        for name, content in unpack(tar, wanted):
            path = target / name
            with on_disk("write", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(wanted[name].mtime_ns, wanted[name].mtime_ns))
    except tarfile.TarError:
        return  # files that did not come out are reported as missing


# folders: checkpoints and models


def _restore_folder(
    drive: Drive,
    source: Path,
    name: str,
    folder: Folder,
    known: set[tuple[str, str]],
    done: Restored,
) -> None:
    """Restore a missing, damaged or outdated checkpoint or model folder from Drive, or from its backup on Drive."""
    path = source / name
    if not _is_inside(name) or not (find_corruption(path) or _is_older(path / MANIFEST, folder)):
        return
    begun = False
    for place in (*copies(name), backup_name(name)):
        for manifest in copies(f"{place}/{MANIFEST}"):
            text = _text(drive, manifest)
            content = f"{text.rstrip()}\n".encode()  # a lost last line end is no damage
            begun |= bool(text)
            if (name, hashlib.sha256(content).hexdigest()) not in known:
                continue
            if count := _fetch_folder(drive, place, content, folder.mtime_ns, path):
                done.count += count
                return
    if begun or not is_of_series(name):  # a checkpoint that was never begun there is no loss
        done.missing.append(name)


def _fetch_folder(drive: Drive, place: str, manifest: bytes, mtime_ns: int, path: Path) -> int:
    """Copy a folder from Drive to `path` if every file verifies; return the number of files, or 0 if any fails."""
    listed = json.loads(manifest)
    with suppress(_Corrupt), replacing_folder(path, manifest=False) as tmp_path:
        for name, entry in listed.items():
            if not _is_inside(name) or not _fetch(
                drive, f"{place}/{name}", entry["size"], entry["sha256"], tmp_path / name
            ):
                raise _Corrupt
        (tmp_path / MANIFEST).write_bytes(manifest)
        os.utime(tmp_path / MANIFEST, ns=(mtime_ns, mtime_ns))
        return len(listed) + 1
    return 0


class _Corrupt(Exception):
    """A file of a folder on Drive is not what the folder's manifest says."""


# reading Drive


def _fetch(drive: Drive, name: str, size: int, sha256: str, target: Path) -> bool:
    """Copy a file from Drive to `target`, and return whether its size and SHA-256 verify.

    The file is found by its name, or by Drive's name for a second copy.
    """
    with on_disk("make", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    for copy in copies(name):
        digest = hashlib.sha256()
        try:
            with on_disk("write", target), target.open("wb") as file:
                for chunk in _read(drive, copy):
                    digest.update(chunk)
                    file.write(chunk)
                os.fsync(file.fileno())
        except _Unreadable:
            continue
        if target.stat().st_size == size and digest.hexdigest() == sha256:
            return True
    target.unlink(missing_ok=True)
    return False


class _Unreadable(Exception):
    """A file is missing on Drive or cannot be read; other files may be readable."""


def _read(drive: Drive, name: str) -> Iterator[bytes]:
    """Yield the chunks of a file on Drive.

    Raises _Unreadable for this file, _DriveError if Drive itself fails.
    """
    try:
        yield from drive.read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _Unreadable from error
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            raise _Unreadable from error
        raise _DriveError(error) from error


class _DriveError(Exception):
    """Wraps an OSError of Drive, to distinguish it from an error of the local disk."""


def _text(drive: Drive, name: str) -> str:
    """Return the text of a small file on Drive, or "" if it cannot be read."""
    with suppress(_Unreadable, UnicodeDecodeError):
        return b"".join(_read(drive, name)).decode()
    return ""
