"""The exceptions that a user sees: errors that a user can fix, and a stop by a signal."""

from helpers.core.redact import redact


class RunError(Exception):
    """An error that a user can fix, shown in one line without a traceback: what, where, and what to do next."""

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """A training whose loss stays NaN or inf because of its settings, on any machine."""


class OutOfMemoryError(RunError):
    """A training that ran out of memory (OOM); the message names a setting to change."""


class DatabaseError(RunError):
    """A sweep's database that does not answer at the moment; a later try may succeed."""


class ElsewhereError(RunError):
    """A file that is needed is on another machine; the message says what to do."""


class Stopped(KeyboardInterrupt):
    """A stop by the signal of that number, with a message on how to resume. `except Exception` does not catch it."""

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
