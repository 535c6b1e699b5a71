"""Redact secrets in logs, tracebacks, warnings, and everything that a notebook's kernel sends.

A secret is the value of an environment variable in SECRETS, a proxy's password, or a value given to `register_secret`.
It is found unencoded, in hex and in base64, each also escaped for a URL, JSON, Python or HTML, once or several times,
and wrapped over lines.
"""

import base64
import html
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

SECRETS = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_AUTH_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "INSTAGRAM_COOKIES",
    "WANDB_API_KEY",
    "OPTUNA_STORAGE",
)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
MIN_LENGTH = 8  # characters; shorter ones occur in any text by chance
COOKIE = re.compile(r"(?:^|;)\s*([\w.-]+)=\"?([^;\"]+)")
SHAPES = {  # of keys that were not registered
    "ANTHROPIC_API_KEY": re.compile(r"sk-ant-[\w-]+"),
    "HF_TOKEN": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "INSTAGRAM_COOKIES": re.compile(
        r"(?<=sessionid=)[^\s;\"']{8,}|\b\d{5,}(?:%3A|:)\w{8,}(?:%3A|:)\d+(?:%3A|:)?[\w-]*"
    ),
}
NAMED_SO = re.compile(r"(api_?key|token|secret|password|passwd|cookies?|sessionid)$", re.IGNORECASE)
LOGIN = re.compile(r"://([^/\s:@]*:[^\s@]+)@")  # user:password in an address
IN_URL = (  # (what precedes it, a password that was not registered)
    re.compile(r"(://[^/\s:@]*:)([^/\s@\"'<>\[\]]+)(?=@)"),
    re.compile(
        r"([?&;](?:[\w.-]*_)?(?:api_?key|token|secret|password|passwd|pwd)=)([^\s&;#\"'<>\\\[\]]{4,})",
        re.I,
    ),
)
ESCAPED = re.compile(r"\\+(?:[nrt]|x([0-9a-f]{2})|u([0-9a-f]{4})|)", re.IGNORECASE)
PERCENT = re.compile(r"%(?:25)*([0-9a-f]{2})", re.IGNORECASE)
BREAK = r"(?:(?:\\+[nr]|[\n\r])[ \t]*)*"  # a line end, also escaped as in JSON, and the next line's indent
_registered: dict[str, str] = {}  # value to name


def register_secret(name: str, value: str) -> str:
    """Register a secret `value` to be redacted as [name] from now on, and return the value."""
    _registered[value] = name
    return value


def redact(text: str) -> str:
    """Replace each secret in a text by its name in brackets, as in [HF_TOKEN]."""
    set_now = ((os.environ.get(name, ""), name) for name in (*SECRETS, *PROXIES))
    secrets = _forms((*set_now, *_registered.items()))
    for form, (name, is_plain, _) in secrets.items():
        text = text.replace(form, f"[{name}]") if is_plain else text
    plain = _plain(text)
    for form, (name, _, looks) in secrets.items():
        if any(look in plain for look in looks):
            text = _escaped(form).sub(f"[{name}]", text)
    for name, shape in SHAPES.items():
        text = shape.sub(f"[{name}]", text)
    for shape in IN_URL:
        text = shape.sub(r"\1[PASSWORD]", text)
    return text


@lru_cache(maxsize=8)
def _forms(secrets: tuple[tuple[str, str], ...]) -> dict[str, tuple[str, bool, set[str]]]:
    """Return the forms of secrets (unencoded, hex, base64) as {form: (name, is unencoded, search texts)}.

    The longest form comes first, since a secret may contain another. Escaped forms are searched only in a text whose
    `_plain` has one of the search texts.
    """
    forms = {}
    for value, name in secrets:
        for part in (part for part in _parts(value) if len(part) >= MIN_LENGTH):
            for form in {part, part.encode().hex()} | _base64(part) | _base64(quote(part)):
                looks = {_plain(look) for look in (form, quote(form), form.replace(" ", "+"))}
                forms[form] = (name, form == part, looks | {"".join(form.lower().split())})
    return dict(sorted(forms.items(), key=lambda pair: -len(pair[0])))


def _plain(text: str) -> str:
    """Return a text unescaped, without white space and in lower case, for a quick search."""
    if "\\" in text:
        text = ESCAPED.sub(_character, text)
    if "%" in text:
        text = PERCENT.sub(_character, text)
    if "&" in text:
        text = html.unescape(text)
    return "".join(text.split()).lower()


def _character(match: re.Match) -> str:
    return chr(int(next(filter(None, match.groups()), "20"), 16))


@lru_cache(maxsize=64)
def _escaped(form: str) -> re.Pattern:
    """Compile a regular expression that finds `form` even with escaped characters or line ends inside."""
    flags = re.IGNORECASE if re.fullmatch("[0-9a-f]{16,}", form) else 0
    return re.compile(BREAK.join(map(_character_pattern, form)), flags)


def _character_pattern(character: str) -> str:
    """Return a regular expression for a character's escaped forms. They do not overlap: search time is linear."""
    code, octets = ord(character), character.encode()
    ways = {
        re.escape(character) if character.isalnum() else r"\\*" + re.escape(character),
        "".join(f"%(?:25)*(?i:{octet:02x})" for octet in octets),
        "".join(rf"\\+x(?i:{octet:02x})" for octet in octets),
        rf"\\+u(?i:{code:04x})",
        f"&#(?:x0*(?i:{code:x})|0*{code});",
    }
    if character in '&<>"':
        ways.add(html.escape(character))
    return f"(?:{'|'.join(sorted(ways))}{'|[+]' if character == ' ' else ''})"


def _parts(value: str) -> set[str]:
    """Return the strings to redact for a secret: the value, a cookie's values, and a URL's passwords.

    A URL without a password is no secret.
    """
    parts = {value, value.strip(), *(match[2].strip() for match in COOKIE.finditer(value))}
    if "://" in value:
        in_query = {match[2] for match in IN_URL[1].finditer(value)}
        if not (login := LOGIN.search(value)) and not in_query:
            return set()
        parts |= in_query | ({login[1], login[1].partition(":")[2]} if login else set())
    return parts | {unquote(part) for part in parts} | {unquote_plus(part) for part in parts}


def _base64(text: str) -> set[str]:
    """Return the forms of a text within longer base64. Characters that also encode a neighbouring byte are left out."""
    forms = set()
    for before in range(3):
        raw = b"\0" * before + text.encode()
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(raw).decode().rstrip("=")
            forms.add(encoded[-(-before * 8 // 6) : len(raw) * 8 // 6])
    return forms


def looks_secret(name: str, value: Any) -> str:
    """Return the name of the secret that a setting seems to hold, or "" if none."""
    if isinstance(value, dict):
        return next((found for k, v in value.items() if (found := looks_secret(str(k), v))), "")
    if isinstance(value, list | tuple):
        return next((found for v in value if (found := looks_secret(name, v))), "")
    text = str(value or "")
    if (clean := redact(text)) != text or LOGIN.search(text):
        known = (*SECRETS, *PROXIES, *_registered.values())
        return next((name for name in known if f"[{name}]" in clean), "OPTUNA_STORAGE")
    return name.upper() if text and (name in SECRETS or NAMED_SO.search(name)) else ""


def _redact_all(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: _redact_all(v) for key, v in value.items()}
    return [_redact_all(v) for v in value] if isinstance(value, list | tuple) else value


def install() -> None:
    """Redact secrets in log records, uncaught exceptions, warnings, and a notebook kernel's messages, from now on."""
    if getattr(logging.getLogRecordFactory(), "redacts", False):
        return
    _redact_logs()
    _redact_extras()
    _redact_exceptions()
    shown = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: redact(shown(*args, **more))
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if session := getattr(getattr(shell, "kernel", None), "session", None):
        pack = session.pack  # serialises each output, traceback and reply
        session.pack = lambda message: pack(_redact_all(message))


def _redact_logs() -> None:
    make = logging.getLogRecordFactory()

    def make_redacted(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        try:
            said = record.getMessage()
        except Exception:  # the format does not match its arguments
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


def _redact_extras() -> None:
    """Redact secrets in the `extra` values of logging calls, which logging adds to a finished record."""
    finish, standard = logging.Logger.makeRecord, vars(logging.makeLogRecord({})).keys()

    def finish_redacted(*args: Any, **more: Any) -> logging.LogRecord:
        record = finish(*args, **more)
        extras = {name: value for name, value in vars(record).items() if name not in standard}
        vars(record).update(_redact_all(extras))
        return record

    logging.Logger.makeRecord = finish_redacted


def _redact_exceptions() -> None:
    """Redact secrets in tracebacks of uncaught exceptions. Those without secrets go to the hooks set before."""
    in_main, in_thread, in_none = sys.excepthook, threading.excepthook, sys.unraisablehook

    def printed(*error: Any) -> bool:
        trace = "".join(traceback.format_exception(*error))
        if has_secret := redact(trace) != trace:
            print(redact(trace), file=sys.stderr, end="")
        return has_secret

    def main(*error: Any) -> None:
        printed(*error) or in_main(*error)

    def other(args: Any) -> None:
        hook = in_thread if hasattr(args, "thread") else in_none
        printed(args.exc_type, args.exc_value, args.exc_traceback) or hook(args)

    sys.excepthook, threading.excepthook, sys.unraisablehook = main, other, other
