"""The one exception a user sees."""


class RunError(Exception):
    """What is wrong, where, and what to do next, in one line.

    Raised at the borders for whatever a user can mend; a notebook shows the line without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """IPython's hook for exceptions that format themselves."""
        return [f"RunError: {self}"]
