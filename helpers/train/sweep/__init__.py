"""Hyperparameter sweeps: several trainings of a run with different settings, compared."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return `sweep_if_asked` from runner.py: notebooks of version 0.2.0 import the function from this package."""
    if name != "sweep_if_asked":
        raise AttributeError(name)
    from helpers.train.sweep.runner import sweep_if_asked

    return sweep_if_asked
