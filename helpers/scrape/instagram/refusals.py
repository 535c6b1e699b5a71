"""What Instagram's refusals mean, in one line each that says what to do next.

Nothing of an exception's own text is shown: it may hold addresses and answers.
"""

import re

import instaloader
import requests

VERSION = instaloader.__version__
UPGRADE = f"upgrade instaloader (here is {VERSION}): pip install -U instaloader, and restart"
AGAIN = "run 01_scrape again"
OTHER_WAYS = "or take the artist's own export (source=export)"

NO_ACCOUNT = r"ProfileNotExists|page of profile|: 404 [^|]*instagram\.com/(?!api/|graphql/)[\w.]"
# what the exceptions' names and texts hold, and what is told; the first that matches counts
_WORDS = (
    (
        r"ConnectionError|Timeout|ProxyError|SSLError|ChunkedEncodingError|HTTPSConnectionPool",
        f"Instagram cannot be reached: check the network, then {AGAIN}",
    ),
    (
        r"checkpoint_required|challenge_required|feedback_required|/challenge",
        "Instagram wants to see a person ({found}): open instagram.com in your browser, do what it asks, "
        f"wait a day and {AGAIN}",
    ),
    (
        r": 429\b|TooManyRequests",
        f"Instagram says that it was asked too often (429): leave it alone for some hours, then {AGAIN}",
    ),
    (
        r"PrivateProfileNotFollowed",
        f"@{{account}} is private and does not let you in: follow it, then {AGAIN}, {OTHER_WAYS}",
    ),
    (
        r"private profile",
        f"@{{account}} is private: log in as one who follows it (section Login), then {AGAIN}, {OTHER_WAYS}",
    ),
    (
        r"logged out",
        f"Instagram has ended your login: copy fresh cookies from your browser (section Login), then {AGAIN}",
    ),
    (
        r"LoginRequired|accounts/login|: 30[1-8]\b",
        f"Instagram wants a login for this: {{login}}, then {AGAIN}, {OTHER_WAYS}",
    ),
    (
        r": 401\b",
        f"Instagram refuses (401): {UPGRADE}; else wait an hour, {{login}}, and {AGAIN}",
    ),
    (
        r": 403\b",
        f"Instagram forbids it (403): {UPGRADE}; else wait a day, {{login}}, and {AGAIN}",
    ),
    (
        NO_ACCOUNT,
        f"Instagram shows no account @{{account}}: check the name (it may be renamed or gone), or {UPGRADE}; "
        f"then {AGAIN}",
    ),
    (
        r": 400\b|BadRequest|execution error|invalid request",
        f"Instagram no longer takes this question (400): {UPGRADE}, then {AGAIN}",
    ),
    (
        r": 5\d\d\b",
        f"Instagram has trouble of its own ({{found}}): wait an hour, then {AGAIN}",
    ),
    (
        r"JSONDecodeError|Expecting value",
        f"Instagram answered with a page where data should be: {UPGRADE}; else {{login}}, and {AGAIN}",
    ),
    (
        r"did not contain",
        f"Instagram's page lacks what instaloader looks for: {UPGRADE}, then {AGAIN}",
    ),
    (r": 404\b", f"Instagram no longer has this question (404): {UPGRADE}, then {AGAIN}"),
)
_MALFORMED = (KeyError, TypeError, IndexError, AttributeError, AssertionError, ValueError)


def explain(error: BaseException, account: str, logged_in: bool) -> str:
    """What an exception of instaloader's means for the walk, and what to do."""
    text = _text(error)
    login = "log in again (section Login)" if logged_in else "log in (section Login)"
    for pattern, words in _WORDS:
        if match := re.search(pattern, text):
            found = match[0].strip(": ")
            return words.format(account=account, login=login, found=found)
    return (
        f"Instagram's answer makes no sense here ({type(error).__name__}): {UPGRADE}, then {AGAIN}"
    )


def is_vanished(error: BaseException) -> bool:
    """Whether the account's page is not there."""
    return bool(re.search(NO_ACCOUNT, _text(error)))


def explain_post(error: BaseException) -> str | None:
    """Why one post cannot be had while the walk goes on, or None where the walk itself is refused."""
    if isinstance(error, instaloader.PostChangedException):
        return "Instagram shows another post in its place"
    if isinstance(error, instaloader.QueryReturnedNotFoundException):
        return "is no longer on Instagram"
    if isinstance(error, instaloader.BadResponseException) and "contain" not in str(error):
        return "is gone from Instagram, or shown only to those who are logged in"
    if isinstance(error, _MALFORMED) and not isinstance(error, requests.RequestException):
        return f"is described in a way that instaloader {VERSION} does not know"
    return None


def _text(error: BaseException | None) -> str:
    """The names and texts of an exception and of those that led to it."""
    parts = []
    while error is not None:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " | ".join(parts)
