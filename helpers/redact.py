"""Secrets stay out of whatever is shown or written: logs, tracebacks, warnings, and all that a notebook's kernel sends.

`helpers` installs this when it is imported. A secret is what SECRETS name in the environment, and what `hide` was
given since; it is taken out as it stands, percent-encoded, escaped for JSON, and in base64.
"""

import base64
import html
import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

SECRETS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "INSTAGRAM_COOKIES",
    "WANDB_API_KEY",
    "OPTUNA_STORAGE",
)
SHORTEST = 8  # characters; shorter ones stand in any text by chance
COOKIE = re.compile(r"(?:^|;)\s*([\w.-]+)=\"?([^;\"]+)")
SHAPES = {  # of keys that nobody told us of
    "ANTHROPIC_API_KEY": re.compile(r"sk-ant-[\w-]+"),
    "HF_TOKEN": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "INSTAGRAM_COOKIES": re.compile(
        r"(?<=sessionid=)[^\s;\"']{8,}|\b\d{5,}(?:%3A|:)\w{8,}(?:%3A|:)\d+(?:%3A|:)?[\w-]*"
    ),
}
NAMED_SO = re.compile(r"(api_?key|token|secret|password|passwd|cookies?|sessionid)$", re.IGNORECASE)
LOGIN = re.compile(r"://([^/\s:@]+:[^\s@]+)@")  # user:password in an address
_given: dict[str, str] = {}  # value to name


def hide(name: str, value: str) -> str:
    """Take this value out of everything from now on; return it."""
    _given[value] = name
    return value


def redact(text: str) -> str:
    """The text with each secret replaced by its name in brackets."""
    set_now = tuple((os.environ[name], name) for name in SECRETS if os.environ.get(name))
    for form, name in _forms(set_now + tuple(_given.items())):
        text = text.replace(form, f"[{name}]")
    for name, shape in SHAPES.items():
        text = shape.sub(f"[{name}]", text)
    return text


@lru_cache(maxsize=8)
def _forms(secrets: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """(text to look for, name) of all secrets, the longest first, so that no part is taken out of a whole."""
    forms = {
        form: name
        for value, name in secrets
        for part in _parts(value)
        if len(part) >= SHORTEST
        for form in _encoded(part)
    }
    return sorted(forms.items(), key=lambda pair: -len(pair[0]))


def _parts(value: str) -> set[str]:
    """A secret, each value in a line of cookies, the password of an address; one without is no secret."""
    parts = {value, value.strip(), *(match[2].strip() for match in COOKIE.finditer(value))}
    if login := LOGIN.search(value):
        parts |= {login[1], login[1].partition(":")[2]}
    elif "://" in value:
        return set()
    return parts | {unquote(part) for part in parts} | {unquote_plus(part) for part in parts}


def _encoded(part: str) -> set[str]:
    forms = {part, quote(part), quote(part, safe=""), quote_plus(part)}
    forms |= {re.sub(r"%..", lambda match: match[0].lower(), form) for form in set(forms)}
    for form in set(forms):
        once = json.dumps(form)[1:-1]
        forms |= {once, json.dumps(once)[1:-1], form.replace("/", r"\/"), repr(form)[1:-1]}
        forms |= {html.escape(form), form.encode().hex()}
    return forms | {form for text in (part, quote(part)) for form in _base64(text)}


def _base64(text: str) -> set[str]:
    """The characters of base64 that a text alone determines, for each place where it may begin in what is encoded."""
    forms = set()
    for before in range(3):
        raw = b"\0" * before + text.encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(raw).decode().rstrip("=")
            forms.add(whole[-(-before * 8 // 6) : len(raw) * 8 // 6])
    return forms


def looks_secret(name: str, value: Any) -> str:
    """Which secret a setting seems to hold, by its name, its shape, or as one in use; empty if none."""
    if isinstance(value, dict):
        return next((found for k, v in value.items() if (found := looks_secret(str(k), v))), "")
    if isinstance(value, list | tuple):
        return next((found for v in value if (found := looks_secret(name, v))), "")
    text = str(value or "")
    if redact(text) != text:
        return next(k for k in (*SECRETS, *_given.values()) if f"[{k}]" in redact(text))
    if LOGIN.search(text):
        return "OPTUNA_STORAGE"
    return name.upper() if text and (name in SECRETS or NAMED_SO.search(name)) else ""


def _redact_all(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redact_all(v) for key, v in value.items()}
    return [_redact_all(v) for v in value] if isinstance(value, list | tuple) else value


def install() -> None:
    """Redact log records, uncaught exceptions, warnings, and what the kernel sends, if this is one. Once is enough."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    _redact_logs()
    _redact_exceptions()
    shown = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: redact(shown(*args, **more))
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if session := getattr(getattr(shell, "kernel", None), "session", None):
        pack = session.pack  # what makes bytes of each output, traceback and reply
        session.pack = lambda message: pack(_redact_all(message))


def _redact_logs() -> None:
    """Have the records of all loggers made without secrets; those that hold none stay as they are."""
    make = logging.getLogRecordFactory()

    def make_redacted(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        try:
            said = record.getMessage()
        except Exception:  # the format does not fit its arguments
            said = f"{record.msg} {record.args}"
        if redact(said) != said:
            record.msg, record.args = redact(said), ()
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        if redact(trace) != trace:
            record.exc_text, record.exc_info = redact(trace).rstrip("\n"), None
        record.stack_info = record.stack_info and redact(record.stack_info)
        return record

    make_redacted.redacts = True
    logging.setLogRecordFactory(make_redacted)


def _redact_exceptions() -> None:
    """Have uncaught exceptions told without secrets; one that holds none is told as it would have been."""
    in_main, in_thread, in_none = sys.excepthook, threading.excepthook, sys.unraisablehook

    def told(*error: Any) -> bool:
        trace = "".join(traceback.format_exception(*error))
        if clean := redact(trace) != trace:
            print(redact(trace), file=sys.stderr, end="")
        return clean

    def main(*error: Any) -> None:
        told(*error) or in_main(*error)

    def other(args: Any) -> None:
        hook = in_thread if hasattr(args, "thread") else in_none
        told(args.exc_type, args.exc_value, args.exc_traceback) or hook(args)

    sys.excepthook, threading.excepthook, sys.unraisablehook = main, other, other
