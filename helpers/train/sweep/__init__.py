"""Several trainings of a run, compared."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Version 0.2.0's notebooks import `sweep_if_asked` from here; it is in runner.py."""
    if name != "sweep_if_asked":
        raise AttributeError(name)
    from helpers.train.sweep.runner import sweep_if_asked

    return sweep_if_asked
