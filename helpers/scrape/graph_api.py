"""Requests to Instagram's own API (graph.instagram.com), within its limits, each refusal explained in a line.

The token is part of each address that is asked. So no address, answer or exception is shown, no redirect is followed,
and pages are asked for by their cursor, as the address of the next page in an answer holds the token too.
Source: https://developers.facebook.com/docs/instagram-platform (error codes: docs/graph-api/guides/error-handling).
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import requests

from helpers.scrape.items import SourceStopped

API = "https://graph.instagram.com"
TIMEOUT_S = (10.0, 60.0)  # to connect, and without any data
USAGE_HEADERS = ("X-Business-Use-Case-Usage", "X-App-Usage")
STOP_AT_PERCENT = 95.0  # of the limit; beyond 100 Instagram refuses, and the more for being asked
AGAIN = "run 01_scrape again"
NEW_TOKEN = (
    "make a new one (developers.facebook.com, My apps, Instagram, API setup with Instagram login) "
    f"for INSTAGRAM_ACCESS_TOKEN, then {AGAIN}"
)

SERVER = (1, 2)
THROTTLED = (4, 17, 32, 341, 613, 429, *range(80000, 80015))  # 429 is HTTP's
NO_PERMISSION = (3, 10, *range(200, 300))
BLOCKED = 368
TOKEN = (102, 190, 2500)
BAD_OBJECT = (100, 803)  # or a parameter: what is asked for has vanished, or a cursor has expired
CHECKPOINT = (459, 464)  # subcodes of 190
TOKEN_ENDED = {
    458: "is of an app that the account has removed",
    460: "has ended, as the password changed",
    463: "has expired",
    467: "has been revoked",
}
EXPIRED_ON = re.compile(r"expired on \w+, (\d{1,2}-\w{3}-\d{2,4}) ")
OTHER_WAYS = (
    f"take a newer version of this project and {AGAIN}, or take your export (source='export')"
)
NOT_UNDERSTOOD = f"Instagram's API gives an answer that is not understood: {OTHER_WAYS}"


class ApiRefusal(SourceStopped):
    """Raised with a line that says what to do if the API refuses; `code` is its error code, or else HTTP's."""

    def __init__(self, words: str, code: int = 0, is_transient: bool = False) -> None:
        super().__init__(words)
        self.code, self.is_transient = code, is_transient


class GraphApi:
    """A session with the API: it stops by itself before the limit that the API's answers tell is used up."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.used_percent, self.wait_minutes = 0.0, 0.0
        self.session = requests.Session()

    def ask(self, path: str, **params: str | int) -> dict[str, Any]:
        """Return the API's answer to a GET request as a dict. Raises ApiRefusal."""
        if self.used_percent >= STOP_AT_PERCENT:
            raise ApiRefusal(_throttled(f"{self.used_percent:.0f} %", self.wait_minutes), 4)
        try:
            response = self.session.get(
                f"{API}/{path}",
                params={**params, "access_token": self.token},
                allow_redirects=False,
                timeout=TIMEOUT_S,
            )
        except (requests.RequestException, OSError) as error:
            raise ApiRefusal(_unreachable(error), is_transient=True) from None
        self.used_percent, self.wait_minutes = _usage(response.headers)
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            raise self._no_data(response) from None
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            raise self._refusal(answer["error"], response.status_code)
        if not isinstance(answer, dict) or response.status_code != 200:
            raise self._no_data(response)
        return answer

    def _no_data(self, response: requests.Response) -> ApiRefusal:
        """Return the refusal of an answer that is not the API's JSON, such as a proxy's page."""
        status = response.status_code
        if status >= 500 or status == 429:
            return self._refusal({}, status)
        what = "leads to another address" if response.is_redirect else "is no data of the API"
        return ApiRefusal(
            f"the answer (HTTP {status}) {what}: a proxy or a page to sign in to the network may be in the way; "
            f"open graph.instagram.com in a browser on this network, then {AGAIN}",
        )

    def _refusal(self, error: dict[str, Any], status: int) -> ApiRefusal:
        code, subcode = _number(error.get("code")), _number(error.get("error_subcode"))
        code = code or (status if status >= 400 else 0)  # other statuses are codes of the API's too
        is_transient = code in SERVER or status >= 500 or error.get("is_transient") is True
        said = str(error.get("message"))
        if code in THROTTLED:
            words = _throttled(f"code {code}", self.wait_minutes)
        elif code in TOKEN and subcode in CHECKPOINT:
            words = (
                f"Instagram asks for a human check (code {code}): open instagram.com in your browser, do what it "
                f"asks, then {AGAIN}"
            )
        elif code in TOKEN:
            words = f"the token {self._why_ended(subcode, said)} (code {code}): {NEW_TOKEN}"
        elif code in NO_PERMISSION:
            words = (
                f"the token lacks a permission (code {code}): allow instagram_business_basic, make yourself a tester "
                f"of the app (App roles; accept it in Instagram's settings); then {NEW_TOKEN}"
            )
        elif code == BLOCKED:
            words = (
                f"Instagram has blocked this for a time (code {code}): look at Account status in Instagram's settings, "
                f"wait a day, then {AGAIN}"
            )
        elif is_transient:
            words = f"Instagram has a server error ({code}): wait some minutes, then {AGAIN}"
        elif code in BAD_OBJECT:
            words = f"Instagram does not know what was asked for (code {code}): {OTHER_WAYS}"
        else:
            words = f"Instagram refuses (code {code}): wait an hour; else {OTHER_WAYS}"
        return ApiRefusal(words, code, is_transient)

    def _why_ended(self, subcode: int, said: str) -> str:
        if (why := TOKEN_ENDED.get(subcode)) is None and not self.token.startswith("IGAA"):
            return "is not accepted; one of Instagram Login begins with IGAA, and yours does not"
        day = EXPIRED_ON.search(said)
        return f"{why or 'is not accepted'}{f' on {day[1]}' if day and subcode == 463 else ''}"


def _number(value: Any) -> int:
    return int(value) if str(value).isdecimal() else 0


def _throttled(what: str, minutes: float) -> str:
    wait = f"{minutes:.0f} minutes" if minutes else "an hour"
    return f"Instagram's limit of requests is used up ({what}): wait {wait}, then {AGAIN}"


def _unreachable(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            "the certificate of graph.instagram.com is not accepted: check this machine's date and time, "
            f"and whether a proxy is in between, then {AGAIN}"
        )
    return (
        f"graph.instagram.com cannot be reached ({type(error).__name__}): check the network, and HTTPS_PROXY "
        f"if you set it, then {AGAIN}"
    )


def _usage(headers: Mapping[str, str]) -> tuple[float, float]:
    """Return the used share of the limit in per cent, and the minutes to wait, by the headers of an answer.

    X-App-Usage is a row of figures; X-Business-Use-Case-Usage has a list of rows for each account.
    """
    percent, minutes = 0.0, 0.0
    for name in USAGE_HEADERS:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            told = json.loads(headers.get(name) or "{}")
            rows = [told] if "call_count" in told else [r for rows in told.values() for r in rows]
            for row in rows:
                used = [row.get(n, 0) for n in ("call_count", "total_cputime", "total_time")]
                percent = max(percent, *map(float, used))
                minutes = max(minutes, float(row.get("estimated_time_to_regain_access", 0)))
    return percent, minutes
