"""A hyperparameter sweep: several trainings of a run, compared."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Find `sweep_if_asked`, which version 0.2.0's notebooks import from here, in runner.py."""
    if name != "sweep_if_asked":
        raise AttributeError(name)
    from helpers.train.sweep.runner import sweep_if_asked

    return sweep_if_asked
