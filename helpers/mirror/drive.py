"""Read, write and verify files in a folder on the mounted Google Drive.

Drive writes to a cache first and reports success, so a file counts only when it was read back and its upload has
ended. Drive's bin counts against the quota, so a file is truncated before it is deleted.
"""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from helpers.host import here
from helpers.host.interface import Place

CHUNK = 1 << 20  # bytes
ATTEMPTS = 3
POLL_S = 1.0
PATIENCE_S, SLOWEST_BYTES_PER_S = 600.0, 200_000  # for the upload of a file, before it is reported
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHUT = (errno.EROFS, errno.EACCES, errno.EPERM)
GONE = (errno.ENOTCONN, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ECONNABORTED)


class NotMirrored(Exception):
    """The error for a file that could not be mirrored to Drive. The message says why, and what to do."""


class Drive:
    """A folder on Google Drive, with operations on its files. File names are relative to this folder.

    Each operation raises OSError if Drive does. The mount point is never created: that would be the local disk.
    """

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, root / folder
        self.heard_at = time.monotonic()
        self.verified: set[tuple[str, str]] = set()  # (name, SHA-256) of what was read back

    def path(self, name: str) -> Path:
        if not self.root.is_dir():
            raise OSError(errno.ENOTCONN, "not mounted", str(self.root))
        return self.folder / name

    def read(self, name: str) -> Iterator[bytes]:
        with self.path(name).open("rb") as file:
            while chunk := file.read(CHUNK):
                self.heard_at = time.monotonic()
                yield chunk

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
                self.heard_at = time.monotonic()
            file.flush()
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        """Delete a file, folder or link on Drive, after truncating files to 0 bytes. The targets of links stay."""
        path = self.path(name)
        inside = [] if path.is_symlink() else path.rglob("*")
        for file in [path, *inside]:
            if file.is_symlink():
                file.unlink()
            elif file.is_file():
                os.truncate(file, 0)
                file.unlink()
        if path.is_dir():
            shutil.rmtree(path)

    def rename(self, name: str, new: str) -> None:
        self.path(name).rename(self.path(new))

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes as Drive reports it, or None if the file is missing."""
        try:
            return self.path(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.path("").parent if self.folder.is_dir() else self.root).free

    def is_uploaded(self, name: str) -> bool:
        """Return True unless Drive marks a file as not fully uploaded yet."""
        path = self.path(name)
        self.heard_at = time.monotonic()
        with suppress(AttributeError):  # os.getxattr is Linux's
            try:
                return os.getxattr(path, "user.drive.uncommitted") not in (b"1", b"true")
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                    raise
        return True

    # built on the operations above

    def text(self, name: str) -> str:
        """Return the text of a small file, or "" if the file is missing or not UTF-8."""
        with suppress(FileNotFoundError, UnicodeDecodeError):
            return b"".join(self.read(name)).decode()
        return ""

    def holds(self, name: str, sha256: str) -> bool:
        """Read a file back from Drive, and return True if its SHA-256 matches."""
        digest = hashlib.sha256()
        try:
            for chunk in self.read(name):
                digest.update(chunk)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        return digest.hexdigest() == sha256

    def verify(self, name: str, sha256: str) -> bool:
        """Return True if Drive has finished uploading a file, and its copy there has the right SHA-256."""
        is_there = self.holds(name, sha256) and self.is_uploaded(name)
        if is_there:
            self.verified.add((name, sha256))
        return is_there

    def put(self, name: str, size: int, sha256: str, chunks: Callable[[], Iterable[bytes]]) -> None:
        """Write a file to Drive and verify it. At most ATTEMPTS writes are tried.

        Raises NotMirrored if the last try does not verify, and OSError if Drive fails.
        """
        for attempt in range(ATTEMPTS + 1):
            if self.holds(name, sha256):
                break
            if attempt == ATTEMPTS:
                raise NotMirrored(
                    f"{name} was written {ATTEMPTS} times and reads back as something else: "
                    f"{_place().name} may be full or out of sync; {_place().if_odd}, then run sync(here) again"
                )
            self.require_room(name, size)
            self.write(name, chunks())
        self._await_upload(name, size)
        self.verified.add((name, sha256))

    def put_bytes(self, name: str, content: bytes) -> None:
        self.put(name, len(content), hashlib.sha256(content).hexdigest(), lambda: [content])

    def require_room(self, what: str, size: int) -> None:
        """Raise NotMirrored if Drive has fewer than `size` free bytes."""
        free = self.free_bytes()
        if size > free:
            raise NotMirrored(
                f"{what} needs {format_bytes(size)}, {_place().name} has {format_bytes(free)} free: "
                f"{_place().if_full}, then run sync(here)"
            )

    def _await_upload(self, name: str, size: int) -> None:
        patience_s = PATIENCE_S + size / SLOWEST_BYTES_PER_S
        until = time.monotonic() + patience_s
        while not self.is_uploaded(name):
            if time.monotonic() >= until:
                raise NotMirrored(
                    f"{_place().name} took {name} but has not uploaded it in {patience_s / 60:.0f} minutes: it "
                    f"may be full or offline; {_place().if_odd}, then run sync(here) again"
                )
            time.sleep(POLL_S)


def _place() -> Place:
    return here.MIRROR or Place(Path(), "the mirror")


def format_bytes(size: float) -> str:
    """Format a number of bytes as text, such as `3.4 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def explain(error: Exception) -> str:
    """Explain an error of Drive in one line, with advice. For any other exception, return its own message."""
    if not isinstance(error, OSError):
        return str(error)
    place = _place()
    if error.errno in FULL:
        return f"{place.name} is full: {place.if_full} and run sync(here)"
    if error.errno in GONE:
        return f"{place.name} is disconnected ([Errno {error.errno}]): {place.if_gone} and run sync(here)"
    if error.errno in SHUT:
        return f"{place.name} cannot be written ([Errno {error.errno}]): {place.if_shut}, then run sync(here)"
    return f"{place.name} refused ({error}): run sync(here) to try again"
