"""Restore a run from its mirror on Drive. Every file that is missing or outdated on this machine is copied.

A file is taken only if it is, byte for byte, what an index on Drive says: the newest index of which every file is
available, or else what is available of the newest. A file that does not verify is named and left out.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
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
    Archive,
    File,
    Folder,
    Index,
    backup_name,
    copies,
    is_hidden,
    is_of_series,
    newest_first,
)


@dataclass
class Restored:
    """The result of a restore: the number of restored files, and the names of files that failed."""

    count: int = 0
    missing: list[str] = field(default_factory=list)


def restore_from(drive: Drive, source: Path, unwanted: frozenset[str] | None = None) -> Restored:
    """Restore a local run folder from Drive: copy every file that is missing or outdated locally.

    With `unwanted`, Drive is an earlier copy: no checkpoint is taken that this machine is past, nor images of those
    posts (shortcodes) or SHA-256.
    An unreadable file on Drive counts as corrupt. Raises OSError if Drive fails, and RunError if this machine's disk
    does, or if Drive holds a run without its index: a new index would replace the run's folders.
    """
    scratch = source / ".restore"
    try:
        if indexes := Index.read_all(partial(_text, drive)):
            with locked(source / ".restore.lock"):  # two notebooks may share a machine
                shutil.rmtree(scratch, ignore_errors=True)
                for index in indexes if unwanted is not None else []:
                    _leave_out(index, source, unwanted)
                try:
                    return _restore(drive, source, scratch, indexes)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except _DriveError as failed:
        raise failed.args[0] from None
    if unwanted is None and any(drive.path("").rglob(MANIFEST)):
        raise RunError(
            f"{drive.folder} holds a run, but neither {' nor '.join(SLOTS)}, which list what is in it: restore one "
            "from the bin there, or rename that folder and copy its checkpoints from it by hand"
        )
    return Restored()


def _leave_out(index: Index, source: Path, unwanted: frozenset[str]) -> None:
    """Take out of an earlier copy's index what was taken down since, and checkpoints before those that are here."""
    for name, file in list(index.files.items()):
        if {file.sha256, Path(name).stem.rpartition("_")[0]} & unwanted:
            del index.files[name]
    newest = {name.rpartition("-")[0]: name for name in sorted(index.folders) if is_of_series(name)}
    for series, name in newest.items():
        if any(path.name > Path(name).name for path in source.glob(f"{series}-*")):
            index.folders = {
                n: f for n, f in index.folders.items() if n.rpartition("-")[0] != series
            }


def _restore(drive: Drive, source: Path, scratch: Path, indexes: list[Index]) -> Restored:
    @cache
    def fetch(name: str, archive: Archive | None) -> Path | None:
        if archive and _fetch(drive, name, archive.size, archive.sha256, scratch / archive.sha256):
            return scratch / archive.sha256
        return None

    def fetch_all(number: int) -> list[Path | None]:
        parts = {file.part for file in wanted[number].values()}
        return [fetch(part, indexes[number].parts.get(part)) for part in parts]

    wanted = [_wanted(source, index) for index in indexes]
    chosen = next((n for n in range(len(indexes)) if all(fetch_all(n))), 0)
    index, done = indexes[chosen], Restored()
    for path in filter(None, fetch_all(chosen)):
        unpack(path, wanted[chosen], scratch / "files")
    _copy_unpacked(drive, wanted[chosen], scratch / "files")
    _replace_small(scratch / "files", wanted[chosen], source, done)
    have = {(name, file.sha256) for name, file in index.files.items()}
    done.missing += [name for name, file in wanted[0].items() if (name, file.sha256) not in have]
    folders = (indexes[0] if _manifests(indexes[0]) == _manifests(index) else index).folders
    known = {(n, folder.sha256) for index in indexes for n, folder in index.folders.items()}
    for name in newest_first(folders):
        _restore_folder(drive, source / name, name, folders[name], known, done)
    series = [name for name in newest_first(folders) if is_of_series(name)]
    if not any((source / name).is_dir() for name in series):
        done.missing += [name for name in series[:1] if name not in done.missing]
    return done


# small files


def _manifests(index: Index) -> dict[str, str]:
    return {n: file.sha256 for n, file in index.files.items() if n.endswith(f"/{MANIFEST}")}


def _wanted(source: Path, index: Index) -> dict[str, File]:
    files = {name: file for name, file in index.files.items() if _is_inside(name)}
    older = {name: _is_older(source / name, file) for name, file in files.items()}

    @cache  # a folder's manifest is asked for once for each of its files
    def is_same(name: str) -> bool:
        return sha256(source / name) == files[name].sha256

    found = {}
    for name, file in files.items():
        manifests = [f"{above.as_posix()}/{MANIFEST}" for above in Path(name).parents]
        # a missing or older manifest takes its whole folder; the same one, its missing files
        decides = next((m for m in manifests if m in files), name)
        if older[decides] or not (source / name).is_file() and is_same(decides):
            found[name] = file
    return found


def _is_older(path: Path, file: File | Folder) -> bool:
    if not path.is_file():
        return True
    return path.stat().st_mtime_ns < file.mtime_ns and sha256(path) != file.sha256


def _is_inside(name: str) -> bool:
    path = Path(name)
    # what Drive names must stay inside the run's folder
    return not path.is_absolute() and not is_hidden(path) and path.name not in ("", ".")


def _replace_small(unpacked: Path, wanted: dict[str, File], source: Path, done: Restored) -> None:
    folders = [n.removesuffix(MANIFEST) for n in wanted if n.endswith(f"/{MANIFEST}")]
    for folder in folders:
        if find_corruption(unpacked / folder) is None:
            replace_folder(unpacked / folder, source / folder)
            done.count += sum(name.startswith(folder) for name in wanted)
        else:
            done.missing.append(folder.removesuffix("/"))
    for name in wanted:
        path, new = source / name, unpacked / name
        if name.startswith(tuple(folders)):
            continue
        if not new.is_file():
            done.missing.append(name)
        elif not _continues(path, new):
            with replacing_file(path) as tmp_path:
                shutil.copy2(new, tmp_path)
            done.count += 1


def _copy_unpacked(drive: Drive, wanted: dict[str, File], target: Path) -> None:
    """Copy the wanted files that no archive gave, if a host unpacked their archive into a folder of its name."""
    for name, file in wanted.items():
        for folder in (file.part, file.part.removesuffix(".tar")):
            is_missing = not (target / name).is_file() and drive.path(folder).is_dir()
            if is_missing and _fetch(
                drive, f"{folder}/{name}", file.size, file.sha256, target / name
            ):
                os.utime(target / name, ns=(file.mtime_ns, file.mtime_ns))


def _continues(path: Path, older: Path) -> bool:
    is_log = path.suffix == ".jsonl" and path.is_file()
    return is_log and path.read_bytes().startswith(older.read_bytes())


# folders: checkpoints and models


def _restore_folder(
    drive: Drive, path: Path, name: str, folder: Folder, known: set[tuple[str, str]], done: Restored
) -> None:
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
    listed = json.loads(manifest)
    # if one file does not verify, none is copied
    with suppress(_Unusable), replacing_folder(path, manifest=False) as tmp_path:
        for name, entry in listed.items():
            if not _is_inside(name) or not _fetch(
                drive, f"{place}/{name}", entry["size"], entry["sha256"], tmp_path / name
            ):
                raise _Unusable
        (tmp_path / MANIFEST).write_bytes(manifest)
        os.utime(tmp_path / MANIFEST, ns=(mtime_ns, mtime_ns))
        return len(listed) + 1
    return 0


# reading Drive


class _Unusable(Exception):
    """The error for a file on Drive that is missing, unreadable or corrupt."""


class _DriveError(Exception):
    """The error for a failure of Drive, not of the local disk."""


def _fetch(drive: Drive, name: str, size: int, sha256: str, target: Path) -> bool:
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
        except _Unusable:
            continue
        if target.stat().st_size == size and digest.hexdigest() == sha256:
            return True
    target.unlink(missing_ok=True)
    return False


def _read(drive: Drive, name: str) -> Iterator[bytes]:
    try:
        yield from drive.read(name)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        if is_missing or error.errno in (errno.EIO, errno.ESTALE):
            raise _Unusable from error
        raise _DriveError(error) from error  # on_disk would report an OSError as the local disk's


def _text(drive: Drive, name: str) -> str:
    with suppress(_Unusable, UnicodeDecodeError):
        return b"".join(_read(drive, name)).decode()
    return ""
