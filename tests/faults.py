"""Crashes or fails the n-th thing that is done to the disk, for each n: at files.on_disk, where all of it goes."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from helpers.core import files
from helpers.train import log
from tests.kills import forked

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ENOTCONN)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

real = files.on_disk


@contextmanager
def placed(seam: Callable) -> Iterator[None]:
    """Have `seam` in on_disk's place inside, wherever it is called from."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (files, log):
            patch.setattr(module, "on_disk", seam)
        yield


def fail_at(number: int, reason: int) -> Callable:
    """Raise an errno at the n-th operation; a write has written half of its file by then."""
    counter = count(1)

    @contextmanager
    def seam(what: str, path: Path) -> Iterator[None]:
        with real(what, path):
            if next(counter) != number:
                yield
                return
            if what == "write":
                yield
                if path.is_file() and path.suffix != ".jsonl":
                    os.truncate(path, path.stat().st_size // 2)
            raise OSError(reason, os.strerror(reason), str(path))

    return seam


def die_at(number: int) -> Callable:
    """SIGKILL this process before (odd numbers) or after (even) an operation."""
    counter = count(1)

    def die() -> None:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def seam(what: str, path: Path) -> Iterator[None]:
        with real(what, path):
            die()
            yield
            die()

    return seam


def in_child(act: Callable[[], object]) -> int:
    """Run `act` in a forked child; its exit status as waitpid gives it. An exception is exit code 1."""
    return os.waitpid(forked(act), 0)[1]


def changes_outside(folder: Path, act: Callable[[], object]) -> list[tuple]:
    """What Python's audit events tell of changes under `folder` that were made outside of files.on_disk."""
    depth, found, is_on = [0], [], [True]

    @contextmanager
    def seam(what: str, path: Path) -> Iterator[None]:
        with real(what, path):
            depth[0] += 1
            try:
                yield
            finally:
                depth[0] -= 1

    def hook(event: str, args: tuple) -> None:
        if not is_on[0] or depth[0] or not (event in CHANGES or event == "open"):
            return
        if event == "open":
            mode, flags = args[1:]
            if not (any(c in mode for c in "wax+") if mode else (flags or 0) & WRITES):
                return
        if Path(os.fsdecode(args[0])).absolute().is_relative_to(folder.absolute()):
            found.append((event, os.fsdecode(args[0])))

    sys.addaudithook(hook)
    try:
        with placed(seam):
            act()
    finally:
        is_on[0] = False
    return found
