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


def restore_from(drive: Drive, source: Path) -> Restored:
    """Restore a local run folder from Drive: copy every file that is missing or outdated locally.

    An unreadable file on Drive counts as corrupt. Raises OSError if Drive fails, and RunError if this machine's disk
    does, or if Drive holds a run without its index: a new index would replace the run's folders.
    """
    scratch = source / ".restore"
    try:
        if indexes := Index.read_all(partial(_text, drive)):
            with locked(source / ".restore.lock"):  # two notebooks may share a machine
                shutil.rmtree(scratch, ignore_errors=True)
                try:
                    return _restore(drive, source, scratch, indexes)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
    except _DriveError as failed:
        raise failed.args[0] from None
    if any(drive.path("").rglob(MANIFEST)):
        raise RunError(
            f"{drive.folder} holds a run, but neither {' nor '.join(SLOTS)}, which list what is in it: restore one "
            "from Google Drive's bin, or rename that folder and copy its checkpoints from it by hand"
        )
    return Restored()


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
    """Return all manifest files that an index lists, as {name: SHA-256}."""
    return {n: file.sha256 for n, file in index.files.items() if n.endswith(f"/{MANIFEST}")}


def _wanted(source: Path, index: Index) -> dict[str, File]:
    """Return those small files in an index that are missing or outdated in the local run folder.

    A folder with a manifest is taken as a whole if its manifest is missing or older; if it is the same, its missing
    files are.
    """
    files = {name: file for name, file in index.files.items() if _is_inside(name)}
    older = {name: _is_older(source / name, file) for name, file in files.items()}
    found = {}
    for name, file in files.items():
        manifests = [f"{above.as_posix()}/{MANIFEST}" for above in Path(name).parents]
        decides = next((m for m in manifests if m in files), name)
        is_missing = not (source / name).is_file()
        if older[decides] or is_missing and sha256(source / decides) == files[decides].sha256:
            found[name] = file
    return found


def _is_older(path: Path, file: File | Folder) -> bool:
    if not path.is_file():
        return True
    return path.stat().st_mtime_ns < file.mtime_ns and sha256(path) != file.sha256


def _is_inside(name: str) -> bool:
    """Return True if a file name from Drive is safe: relative, not empty, and without parts that start with a dot."""
    path = Path(name)
    return not path.is_absolute() and not is_hidden(path) and path.name not in ("", ".")


def _replace_small(unpacked: Path, wanted: dict[str, File], source: Path, done: Restored) -> None:
    """Copy unpacked small files to the local run folder. A subfolder with a manifest is replaced as a whole."""
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


def _continues(path: Path, older: Path) -> bool:
    """Return True if a local .jsonl log begins with everything that an older copy contains."""
    is_log = path.suffix == ".jsonl" and path.is_file()
    return is_log and path.read_bytes().startswith(older.read_bytes())


# folders: checkpoints and models


def _restore_folder(
    drive: Drive, path: Path, name: str, folder: Folder, known: set[tuple[str, str]], done: Restored
) -> None:
    """Restore a checkpoint or model folder from Drive if the local folder is missing, damaged or outdated."""
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
    """Copy a folder from Drive, and return the number of files. If a file does not verify, copy none and return 0."""
    listed = json.loads(manifest)
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
    """The error for a file on Drive that is missing, unreadable or corrupt. Other files may be usable."""


class _DriveError(Exception):
    """A wrapper for an OSError of Drive. Without it, `on_disk` would report an error of the local disk."""


def _fetch(drive: Drive, name: str, size: int, sha256: str, target: Path) -> bool:
    """Copy a file from Drive and verify it. If it is damaged, try its duplicate on Drive. Return True on success."""
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
    """Read a file on Drive in chunks. Raises _Unusable if only this file cannot be read, _DriveError if Drive fails."""
    try:
        yield from drive.read(name)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        if is_missing or error.errno in (errno.EIO, errno.ESTALE):
            raise _Unusable from error
        raise _DriveError(error) from error


def _text(drive: Drive, name: str) -> str:
    """Return the text of a small file on Drive, or "" if it cannot be read."""
    with suppress(_Unusable, UnicodeDecodeError):
        return b"".join(_read(drive, name)).decode()
    return ""
