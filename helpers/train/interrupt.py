"""Handle SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM between two steps, so that a checkpoint is saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handler of SIGINT and SIGTERM during a training.

    A signal during a step waits for the end of that step, since half a step cannot be saved; further signals are
    ignored. At any other time it calls `stop` at once, unless there are other processes to agree with. Python handles
    signals in the main thread only: in another thread this does nothing.
    """

    def __init__(self, stop: Callable[[int], None]) -> None:
        # `stop` must raise an exception
        self.stop, self.asked = stop, 0
        self.is_busy = self.is_distributed = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        self.set_handlers()
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous signal handlers, except where another handler has been set since."""
        for number, handler in self.before.items():
            if signal.getsignal(number) == self._on_signal and current_thread() is main_thread():
                signal.signal(number, handler)

    def set_handlers(self) -> None:
        """Install the handlers for SIGINT and SIGTERM again: a notebook's kernel sets its own for each cell."""
        for number in SIGNALS:
            if signal.getsignal(number) != self._on_signal and current_thread() is main_thread():
                self.before[number] = signal.signal(number, self._on_signal) or signal.SIG_DFL

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = number
        if not (self.is_busy or self.is_distributed):
            try:
                self.stop(number)
            finally:
                self.asked = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Hold back signals inside this context. A signal's number is stored in `asked`, and `stop` is not called."""
        self.set_handlers()
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False
