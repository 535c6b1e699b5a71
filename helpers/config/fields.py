"""Define the fields of settings: types, bounds, checks, and parsing of values from a command line."""

import ast
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from typing import Any

from helpers.core.errors import RunError
from helpers.core.redact import looks_secret
from helpers.core.run import RUN_NAME


def number(default: float | None, low: float, high: float, **metadata: Any) -> Any:
    """Return a dataclass field for a number from `low` to `high`; only integers if the default is an int."""
    return field(default=default, metadata={"low": low, "high": high, **metadata})


def choice(*options: str, **metadata: Any) -> Any:
    """Return a dataclass field for one of `options`; the first option is the default."""
    return field(default=options[0], metadata={"options": options, **metadata})


def lines(default: str | tuple[str, ...], **metadata: Any) -> Any:
    """Return a dataclass field for several texts, given as lines or a list, stored as str or tuple like `default`."""
    return field(default=default, metadata={"lines": True, **metadata})


def plain(default: Any, **metadata: Any) -> Any:
    """Return a dataclass field for any value of the default's type."""
    return field(default=default, metadata=metadata)


class Unset:
    """Placeholder for settings that have not passed their checks: reading any attribute raises RunError."""

    def __getattr__(self, name: str) -> Any:
        raise RunError("the settings above are not in force: correct them and run their cell again")


UNSET = Unset()


class Checked:
    """Base class of the settings of a notebook: types and bounds are checked on creation."""

    def __post_init__(self) -> None:
        check(self)

    def defaults(self) -> dict[str, Any]:
        """Return the default value of each setting."""
        return {f.name: _default(f) for f in fields(self)}

    def _ipython_display_(self) -> None:
        """Print the run, the preset, and each setting that differs from its default or preset value, one per line."""
        defaults, preset = self.defaults(), getattr(self, "preset", "")
        names = [name for name, value in defaults.items() if getattr(self, name) != value]
        shown = dict.fromkeys(["run", *(["preset"] if preset else []), *names])
        for name in shown:
            print(f"{name} = {getattr(self, name)!r}")
        print(f"All other settings are {'those of the preset' if preset else 'the defaults'}.")


def refuse_secrets(given: dict[str, Any]) -> None:
    """Raise RunError if a setting holds a key, a password or cookies, since settings are written to files."""
    for name, value in given.items():
        if secret := looks_secret(name, value):
            raise RunError(
                f"{name if name != secret else 'a parameter'} holds a secret ({secret}), and settings are written "
                f"down: put it among the host's secrets or in the environment as {secret}, not into a parameter; "
                "a notebook that was executed with it holds it too"
            )


def names_like(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name: the most similar known names, or all known names if none is similar."""
    known = sorted(known)
    if alike := get_close_matches(str(name), known):
        return f"did you mean {' or '.join(alike)}?"
    return f"there are {', '.join(known)}"


def from_text(kind: type, name: str, text: str) -> Any:
    """Parse a command-line text as a value for the field `name` of the settings class `kind`.

    Raises RunError if the field is unknown or the text cannot be parsed.
    """
    known = {f.name: f for f in fields(kind)}
    if name not in known:
        raise RunError(f"{kind.__name__} does not know {name!r}: {names_like(name, known)}")
    wanted = _default_type(known[name])
    if known[name].metadata.get("lines"):
        with suppress(ValueError, TypeError, SyntaxError):  # a text that is not a list stays a text
            if isinstance(listed := ast.literal_eval(text), list | tuple):
                return listed
    if text == "None" or wanted is str:
        return None if text == "None" else text
    try:
        value = ast.literal_eval(text.capitalize() if wanted is bool else text)
    except (ValueError, SyntaxError):
        raise RunError(f"{name} is {text!r}: give {_KINDS[wanted]}") from None
    return value


def check(config: Any) -> None:
    """Convert lines, lists and integers to each field's type, then check types and bounds.

    Raises RunError with the field, the value and the bounds.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("lines"):
            object.__setattr__(config, f.name, _lines(f, value))
        elif isinstance(value, int) and _default_type(f) is float:
            object.__setattr__(config, f.name, float(value))
        elif isinstance(value, list) and _default_type(f) is tuple:
            object.__setattr__(config, f.name, tuple(value))
        elif type(value) is not _default_type(f):
            raise RunError(f"{f.name} is {value!r}: give {_KINDS[_default_type(f)]}")
        _check_bounds(f, getattr(config, f.name))
    if not RUN_NAME.fullmatch(config.run):
        raise RunError(
            f"run is {config.run!r}: use 1 to 64 letters, digits, - and _, as in my-art-1"
        )


def _lines(f: Field, value: Any) -> str | tuple[str, ...]:
    """Convert lines, or a list of texts, to the field's type: str or tuple."""
    texts = value.splitlines() if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{f.name} is {value!r}: give a text in quotes, or a list of them")
    if _default_type(f) is tuple:
        return tuple(text for text in texts if text.strip())
    return value if isinstance(value, str) else "\n".join(texts)


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    tuple: "a list",
    dict: "a dict such as {'name': value}",
}


def _default(f: Field) -> Any:
    assert f.default is not MISSING or f.default_factory is not MISSING
    return f.default if f.default is not MISSING else f.default_factory()


def _default_type(f: Field) -> type:
    return type(_default(f))


def _check_bounds(f: Field, value: Any) -> None:
    if "options" in f.metadata and value not in f.metadata["options"]:
        raise RunError(f"{f.name} is {value!r}: choose one of {', '.join(f.metadata['options'])}")
    if "low" in f.metadata and not f.metadata["low"] <= value <= f.metadata["high"]:
        raise RunError(
            f"{f.name} is {value}: give a number from {f.metadata['low']} to {f.metadata['high']}"
        )
