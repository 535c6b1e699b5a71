"""The exceptions a user sees: what went wrong, and that a stop was heard."""

from helpers.core.redact import redact


class RunError(Exception):
    """What is wrong, where, and what to do next, in one line.

    Raised at the borders for whatever a user can mend; a notebook shows the line without a traceback.
    """

    def __str__(self) -> str:
        return redact(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for exceptions that format themselves."""
        return [f"RunError: {self}"]


class DivergedError(RunError):
    """A training whose loss stays no number: its settings' fault, not the machine's."""


class OutOfMemoryError(RunError):
    """A training that this machine has not the memory for: its settings' fault as well."""


class DatabaseError(RunError):
    """A database that does not answer, now."""


class ElsewhereError(RunError):
    """What is asked for is on another machine."""


class Stopped(KeyboardInterrupt):
    """A training that was asked to stop has done so, in one line: where it is, and how to go on.

    As KeyboardInterrupt it passes by `except Exception`. `signal` is the number of the one that asked.
    """

    def __init__(self, words: str, signal: int) -> None:
        super().__init__(words)
        self.signal = signal

    def _render_traceback_(self) -> list[str]:
        return [f"Stopped: {self}"]


OURS = {kind.__name__ for kind in (RunError, *RunError.__subclasses__(), Stopped)}
