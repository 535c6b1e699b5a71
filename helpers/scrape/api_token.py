"""Read the token of Instagram's API, or refresh it: `python -m helpers.scrape.api_token`.

The token comes from the environment or the host's secrets (INSTAGRAM_ACCESS_TOKEN). A refreshed one is kept, with its
last day, in a file outside the runs that only the user can read, and is used in place of the token that it replaces.
Source: https://developers.facebook.com/docs/instagram-platform/reference/refresh_access_token
"""

import argparse
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.process import run_command
from helpers.core.redact import register_secret
from helpers.host.here import HOST, secret
from helpers.scrape.graph_api import NEW_TOKEN, NOT_UNDERSTOOD, GraphApi
from helpers.scrape.instagram.login import read_private, save_private
from helpers.scrape.items import SourceStopped

SECRET = "INSTAGRAM_ACCESS_TOKEN"
USABLE = re.compile(r"[\w.|-]{16,1000}", re.ASCII)
REFRESH = "python -m helpers.scrape.api_token"
WARN_DAYS = 10


@dataclass(frozen=True)
class Token:
    """A token of the API, with its last day if known, and the hash of the token that it replaces."""

    value: str
    last_day: str = ""  # ISO 8601
    replaces: str = ""  # SHA-256

    def __repr__(self) -> str:
        return f"Token(last_day={self.last_day!r})"

    @property
    def words(self) -> str:
        """A line that tells the token's last day, and how to refresh it."""
        if not self.last_day:
            return f"the token lasts 60 days from when it was made; {REFRESH} refreshes it and tells its last day"
        days = (date.fromisoformat(self.last_day) - date.today()).days
        return f"the token's last day is {self.last_day}" + (
            f": refresh it now by {REFRESH}" if days <= WARN_DAYS else ""
        )


def token_file() -> Path:
    return Path.home() / ".config" / "annalaura-diffusion" / "instagram-token.json"


def read_token() -> Token:
    """Return the token of the environment or the host's secrets, or the refreshed one that replaces it.

    Raises RunError if there is none, or it cannot be a token.
    """
    kept = _read_kept()
    try:
        given = secret(SECRET).strip().strip("'\"").strip()
    except RunError as error:
        if kept:
            return kept
        raise RunError(f"{error}; section API of 01_scrape says how to get one") from None
    if not USABLE.fullmatch(given):
        raise RunError(f"{SECRET} holds no token, which is one long word: {NEW_TOKEN}")
    register_secret(SECRET, given)
    return kept if kept and _hash(given) in (kept.replaces, _hash(kept.value)) else Token(given)


def _read_kept() -> Token | None:
    path = token_file()
    try:
        if (saved := read_private(path)) is None:
            return None
        kept = Token(saved["value"], saved["last_day"], saved["replaces"])
        date.fromisoformat(kept.last_day)
        register_secret(SECRET, kept.value)
        return kept
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RunError(f"{path} holds no token: delete it, and refresh the token again") from None


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def refresh_token() -> str:
    """Refresh the token for another 60 days, keep it in the user's own file, and return a line with its last day.

    Raises RunError if Instagram refuses.
    """
    token = read_token()
    try:
        answer = GraphApi(token.value).ask("refresh_access_token", grant_type="ig_refresh_token")
    except SourceStopped as stop:
        raise RunError(
            f"{stop}. A token can be refreshed from its second day to its last"
        ) from None
    value, seconds = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(value, str) or not USABLE.fullmatch(value) or type(seconds) is not int:
        raise RunError(NOT_UNDERSTOOD)
    register_secret(SECRET, value)
    last_day = (datetime.now(UTC) + timedelta(seconds=seconds)).date().isoformat()
    kept = Token(value, last_day, token.replaces or _hash(token.value))
    path = save_private(token_file(), vars(kept))
    ends = (
        "; that file ends with this machine: keep it on a computer of yours"
        if HOST.is_rented
        else ""
    )
    return f"the token's last day is {last_day}; it is kept in {path}, for your eyes only{ends}"


def main() -> None:
    words = "Refresh the token of Instagram's API for another 60 days, and tell its last day."
    argparse.ArgumentParser(prog=REFRESH, description=words).parse_args()
    print(refresh_token())


if __name__ == "__main__":
    run_command(main)
