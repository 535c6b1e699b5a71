"""Kills a child process before its n-th file operation, for every n."""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _is_operation(event: str, args: tuple) -> bool:
    if event == "open":
        _, mode, flags = args
        return any(c in mode for c in "wax+") if mode else bool((flags or 0) & WRITES)
    return event in OPERATIONS


def _die_at(number: int) -> None:
    counter = count(1)

    def hook(event: str, args: tuple) -> None:
        if _is_operation(event, args) and next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


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
        pid = os.fork()
        if pid == 0:
            try:
                _die_at(number)
                act()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            yield number
            continue
        assert os.WEXITSTATUS(status) == 0
        yield 0
        return
