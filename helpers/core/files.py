"""What must survive a kill: files and folders are written beside their place and renamed into it.

A reader sees the old or the new, never a half. A folder's manifest is written last and names every
file with its size and SHA-256, so a copy that lost something on its way does not verify.
"""

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

from helpers.core.errors import RunError

MANIFEST = "manifest.json"
GB = 1e9
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSALS = (
    *FULL,
    *(errno.EIO, errno.ENOTCONN, errno.ENODEV, errno.ESTALE, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)


@contextmanager
def on_disk(what: str, path: Path) -> Iterator[None]:
    """Change the disk inside: make, write, sync, rename or unlink `path`.

    Every change that this module makes happens inside one of these, and so does what callers write into
    the paths that replacing_file and replacing_folder yield, safetensors' own writing included. So this is
    where a test crashes or fails each of them; that none gets past it is tested by Python's audit events.
    Raises RunError where the disk refuses: what, where, how much is free, and what to do next.
    """
    try:
        yield
    except Exception as error:
        if (reason := _refusal(error)) is None:
            raise
        raise RunError(
            f"could not {what} {path}: {os.strerror(reason)} ({_free(path)}): {_next_step(reason)}, "
            "and run the notebook again; it goes on from what was kept last"
        ) from error


def _refusal(error: Exception) -> int | None:
    """The errno that a disk gave, also by way of Rust, as safetensors tells it: `... (os error 28)`."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    reason = error.errno if isinstance(error, OSError) else told and int(told[1])
    return reason if reason in REFUSALS else None


def _free(path: Path) -> str:
    with suppress(OSError):
        there = next(parent for parent in path.absolute().parents if parent.is_dir())
        return f"{shutil.disk_usage(there).free / GB:.2f} GB free there"
    return "the disk does not answer"


def _next_step(reason: int) -> str:
    if reason in FULL:
        return "free some space"
    if reason == errno.ENOTCONN:
        return "connect that disk again (on Colab: Runtime, Restart session)"
    return "see that the disk is there and may be written to"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the disk keep what was written to a file, or a folder's list of names."""
    with on_disk("sync", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename(source: Path, target: Path) -> None:
    with on_disk("rename", source):
        source.replace(target)
    _sync(target.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, each kept by the one above."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with on_disk("make", folder):
        folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _clear(path: Path) -> None:
    """Take away what is ours and in nobody's way: a half-written file or folder, or one put aside."""
    if not os.path.lexists(path):
        return
    with on_disk("unlink", path):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def _filling(beside: Path) -> Iterator[None]:
    """Write `beside` inside; what an error leaves of it is taken away, so that it fills no disk."""
    try:
        with on_disk("write", beside):
            yield
    except BaseException:
        with suppress(OSError, RunError):
            _clear(beside)
        raise


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on leaving without an error it takes the place of `path`."""
    _make_folder(path.parent)
    beside = path.with_name(f".{path.stem}.part{path.suffix}")  # the suffix tells Pillow the format
    with _filling(beside):
        yield beside
    _sync(beside)
    _rename(beside, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with replacing_file(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What a file of JSON holds. Raises ValueError if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply to be read") from None


def append_line(path: Path, line: str, sync: bool = True) -> None:
    """Add a line to a file and have the disk keep it; a half line that a kill left is cut off first.

    Without `sync` it survives a kill of the process, not of the machine.
    """
    _make_folder(path.parent)
    with on_disk("write", path), path.open("ab+") as file:
        cut_half_line(file)
        file.write(line.encode() + b"\n")
    if sync:
        _sync(path)


def cut_half_line(file: Any) -> None:
    """Take a last line that a kill cut off a file open for appending and reading."""
    size = file.seek(0, os.SEEK_END)
    if size == 0 or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n":
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def locked(
    path: Path, wait: bool = True, take: Callable[..., None] = fcntl.flock
) -> Iterator[bool]:
    """Hold a lock among this machine's processes, which the kernel lets go when its holder dies, however it does.

    Yields whether it is held: without `wait`, False where somebody else has it.
    """
    _make_folder(path.parent)
    with on_disk("open", path):
        file = path.open("ab")
    with file:
        try:
            take(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True


_held: dict[tuple[int, Path], tuple[ExitStack, list]] = {}  # locks by process, and their holders


@contextmanager
def locked_by_process(path: Path) -> Iterator[bool]:
    """Hold a lock that this process may hold several times, as a notebook does whose cell is run again.

    Yields False where another process has it. It is let go with its last holder, and no forked child inherits it.
    """
    key = (os.getpid(), path.absolute())
    if key not in _held:
        lock = ExitStack()
        if not lock.enter_context(locked(path, wait=False, take=fcntl.lockf)):
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
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving without an error it gets a manifest and replaces `folder`.

    A kill between the two renames leaves the old one as `.NAME.old`, which `recover_folder` puts back.
    """
    beside, old = _part(folder), _old(folder)
    _clear(beside)
    _make_folder(beside)
    with _filling(beside):
        yield beside
        write_manifest(beside)
    recover_folder(folder)
    if os.path.lexists(folder):
        _rename(folder, old)
    _rename(beside, folder)
    _clear(old)


def recover_folder(folder: Path) -> None:
    """Put back what a kill in `replacing_folder` left aside, or clear it where the new one stands."""
    old = _old(folder)
    if old.exists() and not folder.exists():
        _rename(old, folder)
    _clear(old)


def recover_folders(parent: Path) -> None:
    """Clear up after kills in a folder of folders: what was put aside comes back, what is half is taken away."""
    for old in parent.glob(_old(parent / "*").name):
        recover_folder(parent / old.name.removeprefix(".").removesuffix(".old"))
    for half in parent.glob(_part(parent / "*").name):
        _clear(half)


def remove_folder(folder: Path) -> None:
    """Take a folder away at once, for a reader; a kill leaves a rest that recover_folders clears."""
    _clear(_part(folder))
    _rename(folder, _part(folder))
    _clear(_part(folder))


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _part(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def write_manifest(folder: Path) -> None:
    """Name each file of `folder` with its size and SHA-256; written last, its presence says: complete."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    for path in folder.rglob("*"):
        _sync(path)
    write_json(folder / MANIFEST, files)


def find_corruption(folder: Path) -> str | None:
    """What keeps `folder` from being what its manifest says, or None if it verifies."""
    try:
        if not (folder / MANIFEST).is_file():
            return f"{folder} has no {MANIFEST}: its writing did not end"
        listed = read_json(folder / MANIFEST)
        if not listed:
            return f"{folder / MANIFEST} lists nothing"
        for name, entry in listed.items():
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                return f"{folder / MANIFEST} names {name!r}, which is not in its folder"
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
    """What the files in a folder take; nothing where there is none, or the disk does not answer."""
    with suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def folder_hash(folder: Path) -> str:
    """One SHA-256 for all that a folder's manifest lists."""
    return sha256(folder / MANIFEST)
