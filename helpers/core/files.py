"""Write files and folders atomically, by renaming finished temporary ones. A kill leaves nothing half-written."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.core.errors import DiskError

MANIFEST = "manifest.json"
GB = 1e9
CHECK = "check that the disk is there and may be written to"
NEXT_STEPS = {  # by the errno of a disk that refuses a change
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    errno.ENOTCONN: "connect that disk again, or restart the session",
    **dict.fromkeys((errno.EIO, errno.ENODEV, errno.ESTALE, errno.EFBIG), CHECK),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), CHECK),
}


@contextmanager
def on_disk(what: str, path: Path) -> Iterator[None]:
    """Turn a disk error inside this context into a DiskError that names `path` and the free space.

    `what` is the one change made inside: make, write, sync, rename or unlink. Each change of this module is wrapped, as
    is what callers write to its temporary paths: tests fail each one, and find by audit events that there is no other.
    """
    try:
        yield
    except Exception as error:
        if (reason := _refusal(error)) is None:
            raise
        problem = f"could not {what} {path}: {os.strerror(reason)} ({_free(path)})"
        raise DiskError(f"{problem}: {NEXT_STEPS[reason]}") from error


def _refusal(error: Exception) -> int | None:
    # the errors of safetensors state the errno in their text
    from_rust = re.search(r"\(os error (\d+)\)", str(error))
    reason = error.errno if isinstance(error, OSError) else from_rust and int(from_rust[1])
    return reason if reason in NEXT_STEPS else None


def _free(path: Path) -> str:
    with suppress(OSError):
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        return f"{shutil.disk_usage(there).free / GB:.2f} GB free there"
    return "the disk does not answer"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with on_disk("sync", path):
        # or a folder, whose list of names is flushed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    with on_disk("rename", source):
        source.replace(target)
    _sync(target.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and sync each parent to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with on_disk("make", folder):
            folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _remove(path: Path) -> None:
    if os.path.lexists(path):
        with on_disk("unlink", path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _writing(tmp_path: Path) -> Iterator[None]:
    try:
        with on_disk("write", tmp_path):
            yield
    except BaseException:
        with suppress(OSError, DiskError):
            _remove(tmp_path)
        raise


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. On exit without an error, the file written there replaces `path`."""
    make_folder(path.parent)
    tmp_path = path.with_name(f".{path.stem}.part{path.suffix}")  # Pillow reads the suffix
    with _writing(tmp_path):
        yield tmp_path
    _sync(tmp_path)
    _rename(tmp_path, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. After a kill, the file has either its old or its new content."""
    with replacing_file(path) as tmp_path:
        tmp_path.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError if the content is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Append a line to a file, replacing an incomplete last line. Without `sync`, a power cut may lose the new line."""
    make_folder(path.parent)
    with on_disk("write", path), path.open("ab+") as file:
        cut_half_line(file)
        file.write(line.encode() + b"\n")
    if sync:
        _sync(path)


def cut_half_line(file: Any) -> None:
    """Remove a file's incomplete last line. The file must be open for appending and reading."""
    if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


# Locks. By fcntl, not by filelock: on a disk without flock, filelock falls back to a file that outlives its process,
# and its version 3.29, which Colab's image 2026.07 has, lets a forked child inherit the lock and keep it.


@contextmanager
def locked(
    path: Path, wait: bool = True, acquire: Callable[..., None] = fcntl.flock
) -> Iterator[bool]:
    """Hold a lock on a file inside this context, and yield True. With `wait=False`, yield False if the lock is taken.

    The kernel releases the lock when its holder dies.
    """
    make_folder(path.parent)
    with on_disk("open", path):
        file = path.open("ab")
    with file:
        try:
            acquire(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


_held: dict[tuple[int, Path], tuple[ExitStack, list]] = {}  # locks by process, and their holders


@contextmanager
def locked_by_process(path: Path) -> Iterator[bool]:
    """Hold a lock on a file for this process, and yield True. If another process holds the lock, yield False.

    This process may lock it again, as a rerun cell does; the last holder releases it. Forked children do not hold it.
    """
    key = (os.getpid(), path.absolute())
    if key not in _held:
        lock = ExitStack()
        if not lock.enter_context(locked(path, wait=False, acquire=fcntl.lockf)):
            yield False
            return
        _held[key] = (lock, [])
    lock, holders = _held[key]
    holders.append(None)
    try:
        yield True
    finally:
        holders.pop()
        if not holders:
            del _held[key]
            lock.close()


@contextmanager
def replacing_folder(folder: Path, manifest: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill. On exit without an error, it replaces `folder`. `manifest` adds manifest.json."""
    tmp_path = _tmp_path(folder)
    _remove(tmp_path)
    make_folder(tmp_path)
    with _writing(tmp_path):
        yield tmp_path
        if manifest:
            write_manifest(tmp_path)
    replace_folder(tmp_path, folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Replace an old folder by a new one. If a kill interrupts this, `recover_folder` restores the old folder."""
    make_folder(folder.parent)
    recover_folder(folder)
    if os.path.lexists(folder):
        _rename(folder, _backup_path(folder))
    _rename(new, folder)
    _remove(_backup_path(folder))


def recover_folder(folder: Path) -> None:
    """Restore a missing folder from the backup that a killed process left. If the folder exists, delete the backup."""
    backup_path = _backup_path(folder)
    if backup_path.exists() and not folder.exists():
        _rename(backup_path, folder)
    _remove(backup_path)


def recover_folders(parent: Path) -> None:
    """Restore subfolders from backups that a killed process left, and delete temporary subfolders."""
    for backup_path in parent.glob(_backup_path(parent / "*").name):
        recover_folder(parent / backup_path.name.removeprefix(".").removesuffix(".old"))
    for half in parent.glob(_tmp_path(parent / "*").name):
        _remove(half)


def remove_folder(folder: Path) -> None:
    """Delete a folder so that no reader sees it half deleted. After a kill, `recover_folders` deletes the rest."""
    _remove(_tmp_path(folder))
    _rename(folder, _tmp_path(folder))
    _remove(_tmp_path(folder))


def _backup_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _tmp_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def write_manifest(folder: Path) -> None:
    """Write a folder's manifest.json, which lists each file's size and SHA-256, and marks the folder as complete."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    for path in folder.rglob("*"):
        _sync(path)
    write_json(folder / MANIFEST, files)


def find_corruption(folder: Path) -> str | None:
    """Return in words how a folder differs from its manifest.json, or None if every listed file matches."""
    try:
        if not (folder / MANIFEST).is_file():
            return f"{folder} has no {MANIFEST}, so it is incomplete"
        listed = read_json(folder / MANIFEST)
        if not listed:
            return f"{folder / MANIFEST} lists nothing"
        for name, entry in listed.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"{folder / MANIFEST} names {name!r}, which is outside its folder"
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
                return f"{path} is not what {MANIFEST} says"
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return f"{folder / MANIFEST} is damaged"
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    return None


def folder_bytes(folder: Path) -> int:
    """Return the total size of a folder's files in bytes, or 0 if the folder is missing or cannot be read."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def folder_hash(folder: Path) -> str:
    """Return a hash for all files of a folder: the SHA-256 of the folder's manifest.json."""
    return sha256(folder / MANIFEST)


def is_inside(path: Path, root: Path) -> bool:
    """Return True unless `path` is a symbolic link that leads out of `root`."""
    return not path.is_symlink() or path.resolve().is_relative_to(root.resolve())


def printable_path(path: Path) -> str:
    """Return a path as printable text. Bytes that are not UTF-8 are escaped as hex."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
