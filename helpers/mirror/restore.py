"""A run brought back from its mirror: on a fresh machine whole, elsewhere what is missing here or older than there.

Nothing is taken that is not, byte for byte, what an index on Drive says: the newest index of which all can be
had, or else what can be had of the newest. What does not verify is named and stays away.
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
from helpers.core.files import MANIFEST, find_corruption, locked, on_disk, replacing_file, sha256
from helpers.mirror.archives import unpack
from helpers.mirror.drive import Drive
from helpers.mirror.index import (
    SLOTS,
    File,
    Folder,
    Index,
    aside,
    copies,
    is_hidden,
    is_of_series,
    newest_first,
    read_indexes,
)


@dataclass
class Restored:
    """How many files came back, and the names of what could not."""

    count: int = 0
    lost: list[str] = field(default_factory=list)


def restore_from(drive: Drive, source: Path) -> Restored:
    """Bring back what is missing in `source` or older there.

    Raises OSError where Drive does; RunError where the disk here does, or Drive holds a run whose index is gone. A file
    that Drive does not give is as one that does not verify.
    """
    try:
        indexes = read_indexes(partial(_text, drive))
        if not indexes:
            _refuse_lost(drive)
            return Restored()
        with _scratch(source) as scratch:
            return _restore(drive, source, scratch, indexes)
    except _Refused as refused:
        raise refused.args[0] from None


@contextmanager
def _scratch(source: Path) -> Iterator[Path]:
    """A place to unpack in, without what a kill left there, for one at a time: two notebooks may share a machine."""
    place = source / ".restore"
    with locked(source / ".restore.lock"):
        shutil.rmtree(place, ignore_errors=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _refuse_lost(drive: Drive) -> None:
    """Raises RunError where checkpoints or a model are on Drive: they came after an index, and would be replaced."""
    if drive.finds(MANIFEST):
        raise RunError(
            f"{drive.folder} holds a run, but neither {' nor '.join(SLOTS)}, which say what is in it: bring one back "
            "from Google Drive's bin, or rename that folder, and its checkpoints can be copied from it by hand"
        )


def _restore(drive: Drive, source: Path, scratch: Path, indexes: list[Index]) -> Restored:
    done, fetched = Restored(), _Fetched(drive, scratch)
    wanted = [_wanted(source, index) for index in indexes]
    whole = [
        all(fetched.part(index, file.part) for file in files.values())
        for index, files in zip(indexes, wanted, strict=True)
    ]
    chosen = whole.index(True) if True in whole else 0
    _take_small(fetched, indexes[chosen], wanted[chosen], source, done)
    have = {(name, file.sha256) for name, file in indexes[chosen].files.items()}
    done.lost += [name for name, file in wanted[0].items() if (name, file.sha256) not in have]
    folders = indexes[0 if _same_folders(indexes[0], indexes[chosen]) else chosen].folders
    known = {(n, folder.sha256) for index in indexes for n, folder in index.folders.items()}
    for name in newest_first(folders):
        _take_folder(drive, source / name, name, folders[name], known, done)
    series = [name for name in newest_first(folders) if is_of_series(name)]
    if not any((source / name).is_dir() for name in series):
        done.lost += [name for name in series[:1] if name not in done.lost]
    return done


def _same_folders(one: Index, other: Index) -> bool:
    """Whether the folders among their small files, the dataset above all, are the same: what training is bound to."""
    manifests = [
        {name: file.sha256 for name, file in index.files.items() if name.endswith(f"/{MANIFEST}")}
        for index in (one, other)
    ]
    return manifests[0] == manifests[1]


# small files


def _wanted(source: Path, index: Index) -> dict[str, File]:
    """The files that are missing here or older; of a folder with a manifest all, or those missing from the same."""
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


def _is_older(path: Path, file: File) -> bool:
    if not path.is_file():
        return True
    return path.stat().st_mtime_ns < file.mtime_ns and sha256(path) != file.sha256


def _is_inside(name: str) -> bool:
    """Whether a name that was read leads to a place of ours; `..` counts as hidden."""
    path = Path(name)
    return not path.is_absolute() and not is_hidden(path) and path.name not in ("", ".")


class _Fetched:
    """Parts copied to this machine, once each, if they verify."""

    def __init__(self, drive: Drive, scratch: Path) -> None:
        self.drive, self.scratch = drive, scratch
        self.parts: dict[tuple[str, str], Path | None] = {}

    def part(self, index: Index, name: str) -> Path | None:
        part = index.parts.get(name)
        if part is None:
            return None
        key = (name, part.sha256)
        if key not in self.parts:
            target = self.scratch / f"{part.sha256}.tar"
            whole = _fetch(self.drive, name, part.size, part.sha256, target)
            self.parts[key] = target if whole else None
        return self.parts[key]


def _take_small(
    fetched: _Fetched, index: Index, wanted: dict[str, File], source: Path, done: Restored
) -> None:
    """Unpack what is wanted beside, then move each file in, and a folder with a manifest as a whole."""
    beside = fetched.scratch / "files"
    for part in sorted({file.part for file in wanted.values()}):
        if path := fetched.part(index, part):
            _unpack(path, {n: f for n, f in wanted.items() if f.part == part}, beside)
    folders = [
        name.removesuffix(f"/{MANIFEST}") for name in wanted if name.endswith(f"/{MANIFEST}")
    ]
    for folder in folders:
        names = [name for name in wanted if name.startswith(f"{folder}/")]
        if find_corruption(beside / folder) is None:
            _swap(beside / folder, source / folder)
            done.count += len(names)
        else:
            done.lost.append(folder)
    loose = [n for n in wanted if not any(n.startswith(f"{folder}/") for folder in folders)]
    for name in loose:
        if not (beside / name).is_file():
            done.lost.append(name)
            continue
        if not _goes_on(source / name, beside / name):
            with replacing_file(source / name) as place:
                shutil.copy2(beside / name, place)
            done.count += 1


def _goes_on(path: Path, older: Path) -> bool:
    """Whether a log here begins as the other and goes on: clocks differ, and lines are only added."""
    return (
        path.suffix == ".jsonl"
        and path.is_file()
        and path.read_bytes().startswith(older.read_bytes())
    )


def _unpack(tar: Path, wanted: dict[str, File], beside: Path) -> None:
    try:
        for name, content in unpack(tar, wanted):
            path = beside / name
            with on_disk("write", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(wanted[name].mtime_ns, wanted[name].mtime_ns))
    except tarfile.TarError:
        return  # what did not come out is found to be missing


# folders that keep their shape


def _take_folder(
    drive: Drive, path: Path, name: str, folder: Folder, known: set[tuple[str, str]], done: Restored
) -> None:
    """Bring a checkpoint or a model back, or its former version, if it verifies."""
    if not _is_inside(name) or not _is_wanted(path, folder):
        return
    begun = False
    for place in (*copies(name), aside(name)):
        for manifest in copies(f"{place}/{MANIFEST}"):
            text = _text(drive, manifest)
            content = f"{text.rstrip()}\n".encode()  # whose last byte alone was cut off is whole
            begun |= bool(text)
            if (name, hashlib.sha256(content).hexdigest()) not in known:
                continue
            if count := _fetch_folder(drive, place, content, folder.mtime_ns, path):
                done.count += count
                return
    if begun or not is_of_series(name):  # of a series, one that was passed over is no loss
        done.lost.append(name)


def _is_wanted(path: Path, folder: Folder) -> bool:
    if find_corruption(path):
        return True
    manifest = path / MANIFEST
    return manifest.stat().st_mtime_ns < folder.mtime_ns and sha256(manifest) != folder.sha256


def _fetch_folder(drive: Drive, place: str, manifest: bytes, mtime_ns: int, path: Path) -> int:
    """Copy a folder beside `path` and move it in if all of it verifies; return its number of files, or 0."""
    beside = path.with_name(f".{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    listed = json.loads(manifest)
    for name, entry in listed.items():
        if not _is_inside(name) or not _fetch(
            drive, f"{place}/{name}", entry["size"], entry["sha256"], beside / name
        ):
            shutil.rmtree(beside, ignore_errors=True)
            return 0
    with on_disk("write", beside):
        beside.mkdir(parents=True, exist_ok=True)
        (beside / MANIFEST).write_bytes(manifest)
        os.utime(beside / MANIFEST, ns=(mtime_ns, mtime_ns))
    _swap(beside, path)
    return len(listed) + 1


# both


def _fetch(drive: Drive, name: str, size: int, sha256: str, target: Path) -> bool:
    """Copy a file from Drive, or what Drive made of its name; say whether it is what it should be."""
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
        except _NotGiven:
            continue
        if target.stat().st_size == size and digest.hexdigest() == sha256:
            return True
    target.unlink(missing_ok=True)
    return False


class _NotGiven(Exception):
    """A file that is not there, or that Drive does not give; others it may give."""


def _read(drive: Drive, name: str) -> Iterator[bytes]:
    """A file's content. Raises _NotGiven, or what Drive raises where it gives none at all."""
    try:
        yield from drive.read(name)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _NotGiven from error
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):
            raise _NotGiven from error
        raise _Refused(error) from error


class _Refused(Exception):
    """What Drive raised, so that it is not taken for this machine's disk."""


def _text(drive: Drive, name: str) -> str:
    """A small file's text, or nothing."""
    with suppress(_NotGiven, UnicodeDecodeError):
        return b"".join(_read(drive, name)).decode()
    return ""


def _swap(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which goes after."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with on_disk("rename", new):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
    shutil.rmtree(old, ignore_errors=True)
