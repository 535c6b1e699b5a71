"""The exceptions that a user sees: errors that can be fixed, and a stop that was asked for."""

from helpers.core.redact import redact


class RunError(Exception):
    """An error that a user can fix, in one line: what is wrong, where, and what to do next.

    A notebook shows the line without a traceback.
    """

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for exceptions that format themselves."""
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """The loss of a training stays NaN or inf: a fault of its settings, not of the machine."""


class OutOfMemoryError(RunError):
    """A training is out of memory (OOM) on this machine: a fault of its settings as well."""


class DatabaseError(RunError):
    """A database does not answer at the moment."""


class ElsewhereError(RunError):
    """A file that is needed is on another machine."""


class Stopped(KeyboardInterrupt):
    """A training was asked to stop and did: one line says at which step, and how to resume.

    It is a KeyboardInterrupt, so that `except Exception` does not catch it. `signal` is the signal's number.
    """

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
