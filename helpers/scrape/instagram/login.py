"""Read the saved cookies of an Instagram login, or obtain new cookies with the user's password.

Cookies come from the environment or the host's secrets (INSTAGRAM_COOKIES, as the browser shows them:
`sessionid=...; csrftoken=...; ds_user_id=...`), or from a file outside the runs, readable by its owner only, which
`python -m helpers.scrape.login USER` writes. That command asks for a password and never saves it. Without cookies,
Instagram is used anonymously.
"""

import argparse
import getpass
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import instaloader

from helpers.core.errors import RunError
from helpers.core.process import run_command
from helpers.core.redact import register_secret
from helpers.host.here import secret

SECRET = "INSTAGRAM_COOKIES"
REQUIRED = ("sessionid", "csrftoken", "ds_user_id")
SAVED = (*REQUIRED, "mid", "ig_did")
COOKIE_VALUE = re.compile(r"[\x21-\x3a\x3c-\x7e]+")  # printable, no blank and no semicolon
HOW = "copy them afresh from your browser (section Login of 01_scrape)"


def cookie_file() -> Path:
    return Path.home() / ".config" / "annalaura-diffusion" / "instagram.json"


def cookies() -> dict[str, str] | None:
    """Return the saved Instagram login cookies, or None if there are none. Raises RunError for unusable cookies."""
    line = ""
    with suppress(Exception):  # optional, whatever keeps it from being read
        line = secret(SECRET)
    if line:
        return parse(line)
    path = cookie_file()
    try:
        saved = read_private(path)
        return (
            parse("; ".join(f"{name}={value}" for name, value in saved.items())) if saved else None
        )
    except (ValueError, AttributeError):
        raise RunError(f"{path} holds no cookies: delete it and log in again") from None


def parse(line: str) -> dict[str, str]:
    """Parse login cookies copied from a browser, `name=value; ...`. Raises RunError if a required cookie is missing."""
    parts = re.sub(r"^\s*cookie:", "", line.strip().strip("'\""), flags=re.IGNORECASE).split(";")
    pairs = [part.strip().partition("=") for part in parts]
    found = {name: value.strip('"') for name, _, value in pairs if name in SAVED and value}
    if missing := [name for name in REQUIRED if not COOKIE_VALUE.fullmatch(found.get(name, ""))]:
        raise RunError(f"{SECRET} has no usable {', '.join(missing)}: {HOW}")
    if not found["ds_user_id"].isdecimal():
        raise RunError(f"{SECRET} has a ds_user_id that is no number: {HOW}")
    usable = {name: value for name, value in found.items() if COOKIE_VALUE.fullmatch(value)}
    return {name: register_secret(SECRET, value) for name, value in usable.items()}


def save_cookies(found: dict[str, str]) -> Path:
    """Write the login cookies to a file that only the user can read, and return the path."""
    return save_private(
        cookie_file(), {name: value for name, value in found.items() if name in SAVED}
    )


def read_private(path: Path) -> Any:
    """Return the JSON in a file that `save_private` wrote, or None if there is no file.

    Raises RunError if others on this machine can read the file, ValueError if it is not JSON.
    """
    if not path.is_file():
        return None
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise RunError(f"{path} can be read by others on this machine: chmod 600 {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def save_private(path: Path, value: Any) -> Path:
    """Write JSON atomically to a file that only the user can read, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    tmp_path = path.with_suffix(".part")
    tmp_path.unlink(missing_ok=True)
    descriptor = os.open(tmp_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(value, file)
    tmp_path.replace(path)
    return path


def log_in(user: str) -> Path:
    """Log in with a password that the user types, save the cookies, and return the path of the cookie file.

    The password is not saved. Raises RunError if Instagram refuses the login.
    """
    loader = instaloader.Instaloader(
        sleep=False, quiet=True, max_connection_attempts=1, request_timeout=60.0
    )
    try:
        with redirect_stderr(io.StringIO()):
            _log_in(loader, user)
    except instaloader.BadCredentialsException:
        raise RunError("Instagram says that the password or the code is wrong: try again") from None
    except Exception as error:
        raise RunError(
            f"Instagram does not log {user} in ({type(error).__name__}): log in with your browser, then {HOW}"
        ) from None
    return save_cookies(loader.save_session())


def _log_in(loader: instaloader.Instaloader, user: str) -> None:
    try:
        password = getpass.getpass(f"password of {user} on Instagram: ", sys.stdout)
        loader.login(user, register_secret("password", password))
    except instaloader.TwoFactorAuthRequiredException:
        loader.two_factor_login(getpass.getpass("code of your second factor: ", sys.stdout))


def main() -> None:
    words = "Log in to Instagram and keep the cookies. The password is asked for, and not saved."
    parser = argparse.ArgumentParser(prog="python -m helpers.scrape.login", description=words)
    parser.add_argument("user", help="your account's name")
    user = parser.parse_args().user
    print(f"logged in; the cookies are in {log_in(user)}, for your eyes only")


if __name__ == "__main__":
    run_command(main)
