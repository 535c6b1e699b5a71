"""Explain Instagram's refusals, each in one line that says what to do next.

An exception's own text is never shown, as it may hold URLs and responses.
"""

import re

import instaloader
import requests

VERSION = instaloader.__version__
UPGRADE = f"upgrade instaloader (here is {VERSION}): pip install -U instaloader, and restart"
AGAIN = "run 01_scrape again"
OTHER_WAYS = "or take the artist's own export (source=export)"

NO_ACCOUNT = r"ProfileNotExists|page of profile|: 404 [^|]*instagram\.com/(?!api/|graphql/)[\w.]"
# patterns in the exceptions' names and texts, with their explanations; the first match counts
_WORDS = {
    r"ConnectionError|Timeout|ProxyError|SSLError|ChunkedEncodingError|HTTPSConnectionPool": (
        f"Instagram cannot be reached: check the network, then {AGAIN}"
    ),
    r"checkpoint_required|challenge_required|feedback_required|/challenge": (
        "Instagram asks for a human check ({found}): open instagram.com in your browser, do what it asks, "
        f"wait a day and {AGAIN}"
    ),
    r": 429\b|TooManyRequests": (
        f"Instagram reports too many requests (429): wait some hours, then {AGAIN}"
    ),
    r"PrivateProfileNotFollowed": (
        f"@{{account}} is private and does not accept you: follow it, then {AGAIN}, {OTHER_WAYS}"
    ),
    r"private profile": (
        f"@{{account}} is private: log in as a follower (section Login), then {AGAIN}, {OTHER_WAYS}"
    ),
    r"logged out": (
        f"Instagram has ended your login: copy fresh cookies from your browser (section Login), then {AGAIN}"
    ),
    r"LoginRequired|accounts/login|: 30[1-8]\b": (
        f"Instagram requires a login for this: {{login}}, then {AGAIN}, {OTHER_WAYS}"
    ),
    r": 401\b": f"Instagram refuses (401): {UPGRADE}; else wait an hour, {{login}}, and {AGAIN}",
    r": 403\b": (
        f"Instagram forbids this (403): {UPGRADE}; else wait a day, {{login}}, and {AGAIN}"
    ),
    NO_ACCOUNT: (
        f"Instagram shows no account @{{account}}: check the name (it may be renamed or gone), or {UPGRADE}; "
        f"then {AGAIN}"
    ),
    r": 400\b|BadRequest|execution error|invalid request": (
        f"Instagram no longer accepts this request (400): {UPGRADE}, then {AGAIN}"
    ),
    r": 5\d\d\b": f"Instagram has a server error ({{found}}): wait an hour, then {AGAIN}",
    r"JSONDecodeError|Expecting value": (
        f"Instagram answered with a web page instead of data: {UPGRADE}; else {{login}}, and {AGAIN}"
    ),
    r"did not contain": (
        f"Instagram's page lacks what instaloader looks for: {UPGRADE}, then {AGAIN}"
    ),
    r": 404\b": f"Instagram no longer has this endpoint (404): {UPGRADE}, then {AGAIN}",
}
_MALFORMED = (KeyError, TypeError, IndexError, AttributeError, AssertionError, ValueError)


def explain(error: BaseException, account: str, logged_in: bool) -> str:
    """Return a line that explains an instaloader exception and says what to do next."""
    text = _text(error)
    login = "log in again (section Login)" if logged_in else "log in (section Login)"
    for pattern, words in _WORDS.items():
        if match := re.search(pattern, text):
            found = match[0].strip(": ")
            return words.format(account=account, login=login, found=found)
    return f"Instagram's answer is not understood ({type(error).__name__}): {UPGRADE}, then {AGAIN}"


def is_account_missing(error: BaseException) -> bool:
    """Return True if an exception says that the account does not exist."""
    return bool(re.search(NO_ACCOUNT, _text(error)))


def explain_post(error: BaseException) -> str | None:
    """Return why a single post failed, or None if the error may concern more than that post."""
    if isinstance(error, instaloader.PostChangedException):
        return "Instagram shows another post in its place"
    if isinstance(error, instaloader.QueryReturnedNotFoundException):
        return "is no longer on Instagram"
    if isinstance(error, instaloader.BadResponseException) and "contain" not in str(error):
        return "is gone from Instagram, or shown only to those who are logged in"
    if isinstance(error, _MALFORMED) and not isinstance(error, requests.RequestException):
        return f"has a format that instaloader {VERSION} does not know"
    return None


def _text(error: BaseException | None) -> str:
    """Return the class names and messages of an exception and of its causes, joined."""
    parts = []
    while error is not None:
        parts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " | ".join(parts)
