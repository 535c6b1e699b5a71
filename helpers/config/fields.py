"""The types, bounds and checks of settings, and the parsing of settings from a command line."""

import ast
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import Field, field, fields
from difflib import get_close_matches
from typing import Any, get_origin

from helpers.core.errors import RunError
from helpers.core.redact import looks_secret
from helpers.core.run import check_run_name


def number(default: float, low: float, high: float, **metadata: Any) -> Any:
    """Return a dataclass field for a number from `low` to `high`."""
    return field(default=default, metadata={"low": low, "high": high, **metadata})


def choice(*options: str, **metadata: Any) -> Any:
    """Return a dataclass field whose value is one of `options`. The first option is the default."""
    return field(default=options[0], metadata={"options": options, **metadata})


def lines(default: str | tuple[str, ...], **metadata: Any) -> Any:
    """Return a dataclass field for several texts, given as lines or a list. Its values have the type of `default`."""
    return field(default=default, metadata={"lines": True, **metadata})


def plain(default: Any, **metadata: Any) -> Any:
    """Return a dataclass field that accepts any value of the same type as the default."""
    return field(default=default, metadata=metadata)


class Unset:
    """A placeholder for settings that have not passed their checks. Reading any attribute raises RunError."""

    def __getattr__(self, name: str) -> Any:
        raise RunError("the settings above are not in force: correct them and run their cell again")


UNSET = Unset()


class Checked:
    """A base class for the settings of a notebook. Creating an instance checks all types and bounds."""

    def __post_init__(self) -> None:
        check(self)

    def defaults(self) -> dict[str, Any]:
        """Return the default value of each setting."""
        return vars(type(self)())

    def _ipython_display_(self) -> None:
        defaults, preset = self.defaults(), getattr(self, "preset", "")
        names = [name for name, value in defaults.items() if getattr(self, name) != value]
        shown = dict.fromkeys(["run", *(["preset"] if preset else []), *names])
        for name in shown:
            print(f"{name} = {getattr(self, name)!r}")
        print(f"All other settings are {'those of the preset' if preset else 'the defaults'}.")


def refuse_secrets(given: dict[str, Any]) -> None:
    """Raise RunError if a setting holds a secret, such as a password, since settings are written to files."""
    for name, value in given.items():
        if secret := looks_secret(name, value):
            raise RunError(
                f"{name if name != secret else 'a parameter'} holds a secret ({secret}), and settings are written "
                f"down: put it among the host's secrets or in the environment as {secret}, not into a parameter; "
                "a notebook that was executed with it holds it too"
            )


def names_like(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown name. It lists the similar known names, or all known names if none is similar."""
    known = sorted(known)
    if alike := get_close_matches(str(name), known):
        return f"did you mean {' or '.join(alike)}?"
    return f"there are {', '.join(known)}"


def from_text(kind: type, name: str, text: str) -> Any:
    """Convert the text of a command-line setting to the setting's type. Raises RunError if the text does not fit."""
    known = {f.name: f for f in fields(kind)}
    if name not in known:
        raise RunError(f"{kind.__name__} does not know {name!r}: {names_like(name, known)}")
    wanted = _kind(known[name])
    if known[name].metadata.get("lines"):
        with suppress(ValueError, TypeError, SyntaxError):  # a text that is not a list stays a text
            if isinstance(listed := ast.literal_eval(text), list | tuple):
                return listed
    if text == "None" or wanted is str:
        return None if text == "None" else text
    try:
        return ast.literal_eval(text.capitalize() if wanted is bool else text)
    except (ValueError, SyntaxError):
        raise RunError(f"{name} is {text!r}: give {_KINDS[wanted]}") from None


def check(config: Any) -> None:
    """Check the types and bounds of a config's values, after safe conversions. Raises RunError for a wrong value."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.metadata.get("lines"):
            object.__setattr__(config, f.name, _lines(f, value))
        elif isinstance(value, int) and _kind(f) is float:
            object.__setattr__(config, f.name, float(value))
        elif isinstance(value, list) and _kind(f) is tuple:
            object.__setattr__(config, f.name, tuple(value))
        elif type(value) is not _kind(f):
            raise RunError(f"{f.name} is {value!r}: give {_KINDS[_kind(f)]}")
        value, bounds = getattr(config, f.name), f.metadata
        if "options" in bounds and value not in bounds["options"]:
            raise RunError(f"{f.name} is {value!r}: choose one of {', '.join(bounds['options'])}")
        if "low" in bounds and not bounds["low"] <= value <= bounds["high"]:
            raise RunError(
                f"{f.name} is {value}: give a number from {bounds['low']} to {bounds['high']}"
            )
    check_run_name(config.run)


def _lines(f: Field, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        value = value.replace("\\n", "\n")  # as typed in a form's field of one line
    texts = value.splitlines() if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{f.name} is {value!r}: give a text in quotes, or a list of them")
    if _kind(f) is tuple:
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


def _kind(f: Field) -> type:
    return get_origin(f.type) or f.type
