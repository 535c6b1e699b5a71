"""Who asks Instagram: nobody in particular, or someone by the cookies of their browser.

Cookies come from the environment or Colab's Secrets (INSTAGRAM_COOKIES, as the browser shows them:
`sessionid=...; csrftoken=...; ds_user_id=...`), or from a file that only its owner reads, outside of the
runs, which `python -m helpers.scrape.login USER` writes. A password is asked for and never kept.
"""

import getpass
import io
import json
import os
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path

import instaloader

from helpers.core.errors import RunError
from helpers.core.process import run_command
from helpers.core.redact import register_secret
from helpers.host.colab import secret

SECRET = "INSTAGRAM_COOKIES"
NEEDED = ("sessionid", "csrftoken", "ds_user_id")
KEPT = (*NEEDED, "mid", "ig_did")
COOKIE_VALUE = re.compile(r"[\x21-\x3a\x3c-\x7e]+")  # printable, no blank and no semicolon
HOW = "copy them afresh from your browser (section Login of 01_scrape)"


def cookie_file() -> Path:
    return Path.home() / ".config" / "annalaura-diffusion" / "instagram.json"


def cookies() -> dict[str, str] | None:
    """The cookies to ask with, None to ask as nobody. Raises RunError for ones that cannot be used."""
    if line := _from_secrets():
        return parse(line)
    path = cookie_file()
    if not path.is_file():
        return None
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise RunError(f"{path} can be read by others on this machine: chmod 600 {path}")
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return parse("; ".join(f"{name}={value}" for name, value in kept.items()))
    except (ValueError, AttributeError):
        raise RunError(f"{path} holds no cookies: delete it and log in again") from None


def _from_secrets() -> str:
    try:
        return secret(SECRET)
    except Exception:  # it need not be set, and Colab has several ways of saying so
        return ""


def parse(line: str) -> dict[str, str]:
    """Cookies from a browser's line. Raises RunError that names what is missing, and never shows a value."""
    parts = re.sub(r"^\s*cookie:", "", line.strip().strip("'\""), flags=re.IGNORECASE).split(";")
    pairs = [part.strip().partition("=") for part in parts]
    found = {name: value.strip('"') for name, _, value in pairs if name in KEPT and value}
    if missing := [name for name in NEEDED if not COOKIE_VALUE.fullmatch(found.get(name, ""))]:
        raise RunError(f"{SECRET} has no usable {', '.join(missing)}: {HOW}")
    if not found["ds_user_id"].isdecimal():
        raise RunError(f"{SECRET} has a ds_user_id that is no number: {HOW}")
    return {
        n: register_secret(SECRET, value)
        for n, value in found.items()
        if COOKIE_VALUE.fullmatch(value)
    }


def keep(found: dict[str, str]) -> Path:
    """Write cookies to the file that only its owner reads."""
    path = cookie_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_suffix(".part")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({name: value for name, value in found.items() if name in KEPT}, file)
    beside.replace(path)
    return path


def log_in(user: str) -> Path:
    """Ask for the password, and for the code of a second factor where there is one; keep the cookies alone.

    Raises RunError if Instagram does not let the user in.
    """
    loader = instaloader.Instaloader(
        sleep=False, quiet=True, max_connection_attempts=1, request_timeout=60.0
    )
    try:
        with redirect_stderr(io.StringIO()):
            _answer(loader, user)
    except instaloader.BadCredentialsException:
        raise RunError("Instagram says that the password or the code is wrong: try again") from None
    except Exception as error:
        raise RunError(
            f"Instagram does not log {user} in ({type(error).__name__}): log in with your browser, then {HOW}"
        ) from None
    return keep(loader.save_session())


def _answer(loader: instaloader.Instaloader, user: str) -> None:
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
