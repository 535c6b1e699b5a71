"""The exceptions that a user sees: one-line errors that a user can fix, and a stop by a signal."""

from helpers.core.redact import redact


class RunError(Exception):
    """An error that a user can fix, in one line: what is wrong, where, and what to do next.

    A notebook shows the line without a traceback.
    """

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """Return the line that IPython shows instead of a traceback."""
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """Training diverged: the loss stays NaN or inf, because of the settings and not of the machine."""


class OutOfMemoryError(RunError):
    """Training ran out of memory (OOM) on this machine; the message names a setting to change."""


class DatabaseError(RunError):
    """The database of a sweep does not answer at the moment; a later try may succeed."""


class ElsewhereError(RunError):
    """A file that is needed is on another machine; the message says what to do."""


class Stopped(KeyboardInterrupt):
    """A signal stopped a training or a batch of notebooks; the one-line message says how to resume.

    Stopped is a KeyboardInterrupt, so that `except Exception` does not catch it. `signal` is the signal's number.
    """

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
