"""Children to be killed: one at any moment, or before its n-th file operation, for every n.

Python tells of operations by audit events, but not of writes and syncs: files.on_disk is where those are.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch

from helpers.core import files

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def forked(act: Callable[[], object], trains: bool = True) -> int:
    """The process id of a forked child that runs `act` and ends: an exception is exit code 1."""
    if trains and torch.version.cuda:
        pytest.skip("PyTorch's CUDA build trains in no forked process: see CONTRIBUTING.md")
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except SystemExit as leaving:
            os._exit(leaving.code if isinstance(leaving.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def is_operation(event: str, args: tuple) -> bool:
    if event == "open":
        _, mode, flags = args
        return any(c in mode for c in "wax+") if mode else bool((flags or 0) & WRITES)
    return event in OPERATIONS


def _die_at(number: int) -> None:
    counter, on_disk = count(1), files.on_disk

    def die_in_turn() -> None:
        if next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if is_operation(event, args):
            die_in_turn()

    @contextmanager
    def seam(what: str, path: Path) -> Iterator[None]:
        with on_disk(what, path):
            yield
            die_in_turn()

    sys.addaudithook(hook)
    files.on_disk = seam


def kills_at_every_operation(
    folder: Path, act: Callable[[], object], step: int = 1
) -> Iterator[int]:
    """Yield after each kill, with `folder` as the child left it; it begins each time as it is now.

    The last child comes through and yields 0.
    """
    template = folder.with_name(folder.name + "-before")
    shutil.copytree(folder, template)
    for number in count(1, step):
        shutil.rmtree(folder)
        shutil.copytree(template, folder)
        pid = forked(lambda n=number: (_die_at(n), act()), trains=False)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            yield number
            continue
        assert os.WEXITSTATUS(status) == 0
        yield 0
        return
