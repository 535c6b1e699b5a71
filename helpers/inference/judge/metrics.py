"""The picture metrics other than the style axis, each in a module of its own.

A module has `NAME`, the title of its row in the report; `measure(pictures) -> dict`, its figures or {"left_out": why};
and `describe(figures) -> (value, how to read it)`. style_distance.py is an example.
"""

from importlib import import_module
from types import ModuleType

METRICS = {  # by their keys in report.json
    "kid": "helpers.inference.judge.style_distance",  # the key that older versions gave it
}


def load_metrics() -> dict[str, ModuleType]:
    """Import the modules of all metrics. Return them as {key in report.json: module}."""
    return {key: import_module(name) for key, name in METRICS.items()}
