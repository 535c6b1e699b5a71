"""The exceptions that a user sees: errors that a user can fix, and a stop by a signal."""

from helpers.core.redact import redact


class RunError(Exception):
    """An error that a user can fix. Its one-line message says what failed and what to do; no traceback is shown."""

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """The error when a training's loss stays NaN or inf. The settings cause it, so another machine would not help."""


class OutOfMemoryError(RunError):
    """The error when a training runs out of memory (OOM). The message names a setting to change."""


class DiskError(RunError):
    """The error when a disk refuses a change. Its message ends with what a notebook's user does next."""

    @property
    def problem(self) -> str:
        """What is wrong, and what would help, for callers that go on in another way."""
        return super().__str__()

    def __str__(self) -> str:
        return f"{self.problem}, and run the notebook again; it goes on from what was saved last"


class DatabaseError(RunError):
    """The error when a sweep's database does not answer. A later try may succeed."""


class ElsewhereError(RunError):
    """The error when a needed file is on another machine. The message says what to do."""


class Stopped(KeyboardInterrupt):
    """The exception for a stop by a signal. Its message says how to resume. `except Exception` cannot catch it."""

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
