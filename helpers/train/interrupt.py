"""The stop button, Ctrl-C and SIGTERM: heard between two steps, so that what was learnt can be kept."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """SIGINT and SIGTERM for as long as a training is under way.

    One that comes during a step waits for its end, since half a step cannot be kept; further ones change
    nothing. One that comes before, between or after the steps calls `stop` at once, unless there are other
    processes to agree with. Signals reach a process's main thread only: elsewhere this does nothing, and
    nothing is lost by it.
    """

    def __init__(self, stop: Callable[[int], None]) -> None:
        """`stop` takes the signal's number, and raises; it may be replaced as training goes on."""
        self.stop, self.asked = stop, 0
        self.is_busy = self.is_one_of_many = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers back that were there, but for those that somebody else has set since."""
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._hear and _is_main_thread():
                signal.signal(number, handler)

    def _listen(self) -> None:
        """Set the handlers, again where they are gone: a notebook's kernel sets its own for each cell."""
        for number in SIGNALS:
            if signal.getsignal(number) != self._hear and _is_main_thread():
                self.before[number] = signal.signal(number, self._hear) or signal.SIG_DFL

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = number
        if not (self.is_busy or self.is_one_of_many):
            try:
                self.stop(number)
            finally:
                self.asked = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Let signals wait inside."""
        self._listen()
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
