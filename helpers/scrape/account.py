"""Whose timeline it is: an account is known by its number, which stays when it is renamed."""

from instaloader import NodeIterator, Post, Profile, get_json_structure, load_structure

from helpers.errors import RunError
from helpers.run import Run
from helpers.scrape.cursor import Cursor
from helpers.scrape.found import Stopped
from helpers.scrape.session import Session


def profile_of(name: str, session: Session, cursor: Cursor, run: Run) -> Profile:
    """An account's profile, from the cursor where it is there already.

    Raises Stopped where Instagram refuses it, RunError if the run holds the posts of another account.
    """
    if cursor.profile and cursor.account == name:
        profile = load_structure(session.context, cursor.profile)
    else:
        profile = session.ask(lambda: Profile.from_username(session.context, name))
        _check_person(cursor, name, str(profile.userid), run)
        cursor.account, cursor.user_id = name, str(profile.userid)
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
    """The account's posts. Raises Stopped where Instagram refuses them, and tells a new name if there is one."""
    try:
        posts = session.ask(profile.get_posts)
    except Stopped:
        _check_name(_name_now(session, cursor), cursor)
        raise
    _check_name(profile.username, cursor)
    return posts


def _name_now(session: Session, cursor: Cursor) -> str:
    """The account's present name by its number, which only someone logged in is told."""
    if not session.is_logged_in:
        return cursor.account
    try:
        question = lambda: Profile.from_id(session.context, int(cursor.user_id))  # noqa: E731
        return session.ask(question).username
    except Stopped:
        return cursor.account


def _check_name(name: str, cursor: Cursor) -> None:
    if name != cursor.account:
        raise Stopped(
            f"@{cursor.account} is called @{name} now: set account to {name!r} and run 01_scrape again"
        ) from None
