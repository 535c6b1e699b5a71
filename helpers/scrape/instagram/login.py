"""Read the cookies of an Instagram login, or obtain cookies with the user's password.

Cookies come from the environment or the host's secrets (INSTAGRAM_COOKIES, as the browser shows them:
`sessionid=...; csrftoken=...; ds_user_id=...`), or from a file outside the runs, readable by its owner only, which
`python -m helpers.scrape.login USER` writes. That command asks for a password and never saves it. Without cookies,
Instagram is used anonymously.
"""

import getpass
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr, suppress
from pathlib import Path

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
    """Return the login cookies from the secret or the cookie file, or None. Raises RunError if they are unusable."""
    line = ""
    with suppress(Exception):  # optional, whatever keeps it from being read
        line = secret(SECRET)
    if line:
        return parse(line)
    path = cookie_file()
    if not path.is_file():
        return None
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise RunError(f"{path} can be read by others on this machine: chmod 600 {path}")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return parse("; ".join(f"{name}={value}" for name, value in saved.items()))
    except (ValueError, AttributeError):
        raise RunError(f"{path} holds no cookies: delete it and log in again") from None


def parse(line: str) -> dict[str, str]:
    """Return the cookies in a browser's line `name=value; ...`. Raises RunError naming missing ones, not values."""
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
    path = cookie_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    tmp_path = path.with_suffix(".part")
    tmp_path.unlink(missing_ok=True)
    tmp_path.touch(mode=0o600, exist_ok=False)
    tmp_path.write_text(json.dumps({name: v for name, v in found.items() if name in SAVED}))
    tmp_path.replace(path)
    return path


def log_in(user: str) -> Path:
    """Log in with a password that the user types, and return the path of the file with the saved cookies.

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
    if len(sys.argv) != 2:
        sys.exit("usage: python -m helpers.scrape.login USER")
    print(f"logged in; the cookies are in {log_in(sys.argv[1])}, for your eyes only")


if __name__ == "__main__":
    run_command(main)
