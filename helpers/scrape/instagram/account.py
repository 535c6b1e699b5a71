"""Whose timeline it is: an account is known by its number, which stays when it is renamed."""

from functools import partial

from instaloader import NodeIterator, Post, Profile, get_json_structure, load_structure

from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.session import Session, Vanished
from helpers.scrape.items import Stopped


def profile_of(name: str, session: Session, cursor: Cursor, run: Run) -> Profile:
    """An account's profile, from the cursor where it is there already.

    Raises Stopped where Instagram refuses it, RunError if the run holds the posts of another account.
    """
    if cursor.profile and cursor.account == name:
        profile = load_structure(session.context, cursor.profile)
    else:
        profile = session.ask(partial(Profile.from_username, session.context, name))
        user_id = str(session.ask(lambda: profile.userid))
        _check_person(cursor, name, user_id, run)
        cursor.names += [old for old in (cursor.account,) if old not in ("", *cursor.names)]
        cursor.account, cursor.user_id = name, user_id
        cursor.profile = get_json_structure(profile)
        cursor.write(run.cursor)
    if session.context.user_id == cursor.user_id:
        session.context.username = profile.username  # one's own posts are seen though private
    return profile


def _check_person(cursor: Cursor, name: str, user_id: str, run: Run) -> None:
    if cursor.user_id not in ("", user_id):
        raise RunError(
            f"{run.folder} holds posts of @{cursor.account}, not of @{name}: "
            "give this account a run name of its own"
        )


def open_timeline(profile: Profile, session: Session, cursor: Cursor) -> NodeIterator[Post]:
    """The account's posts.

    Raises Stopped where Instagram refuses them, where the account has a new name, or someone else has its name.
    """
    try:
        posts = session.ask(profile.get_posts)
    except Vanished:
        _check_name(_name_now(session, cursor), cursor)
        raise
    _check_name(profile.username, cursor)
    timeline_id = str(posts.freeze().query_variables.get("id") or cursor.timeline_id)
    if cursor.timeline_id not in ("", timeline_id):
        _check_still_same(session, cursor)
    cursor.timeline_id = timeline_id
    return posts


def _name_now(session: Session, cursor: Cursor) -> str:
    """The account's present name, by its number; the old one if Instagram does not tell."""
    try:
        return session.ask(partial(Profile.from_id, session.context, int(cursor.user_id))).username
    except Stopped:
        return cursor.account


def _check_name(name: str, cursor: Cursor) -> None:
    if name != cursor.account:
        raise Stopped(
            f"@{cursor.account} is called @{name} now: set account to {name!r} and run 01_scrape again"
        ) from None


def _check_still_same(session: Session, cursor: Cursor) -> None:
    profile = session.ask(partial(Profile.from_username, session.context, cursor.account))
    if str(profile.userid) != cursor.user_id:
        raise Stopped(
            f"@{cursor.account} is another person now than the one walked before: "
            "find out that one's new name, set account to it and run 01_scrape again"
        )
