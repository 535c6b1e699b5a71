"""The exceptions that a user sees: errors that a user can fix, and a stop by a signal."""

from helpers.core.redact import redact


class RunError(Exception):
    """An error that a user can fix. One line says what, where, and what to do next; no traceback is shown."""

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """A training whose loss stays NaN or inf because of its settings, on any machine."""


class OutOfMemoryError(RunError):
    """A training that ran out of memory (OOM). The message names a setting to change."""


class DatabaseError(RunError):
    """A sweep's database that does not answer. A later try may succeed."""


class ElsewhereError(RunError):
    """A needed file that is on another machine. The message says what to do."""


class Stopped(KeyboardInterrupt):
    """A stop by a signal, given by its number. The message says how to resume; `except Exception` does not catch it."""

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
