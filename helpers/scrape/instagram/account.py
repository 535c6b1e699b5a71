"""Load an Instagram account's profile and timeline, and detect by user id whether the account was renamed."""

from contextlib import suppress
from functools import partial

from instaloader import NodeIterator, Post, Profile, get_json_structure, load_structure

from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.scrape.instagram.cursor import Cursor
from helpers.scrape.instagram.session import AccountNotFound, Session
from helpers.scrape.items import SourceStopped


def load_profile(name: str, session: Session, cursor: Cursor, run: Run) -> Profile:
    """Return the profile of the account `name`, as saved in the cursor or requested from Instagram.

    Raises SourceStopped if Instagram refuses, RunError if the run holds another account's posts.
    """
    if cursor.profile and cursor.account == name:
        profile = load_structure(session.context, cursor.profile)
    else:
        profile = session.request(partial(Profile.from_username, session.context, name))
        user_id = str(session.request(lambda: profile.userid))
        if cursor.user_id not in ("", user_id):
            raise RunError(
                f"{run.folder} holds posts of @{cursor.account}, not of @{name}: "
                "give this account a run name of its own"
            )
        cursor.names += [old for old in (cursor.account,) if old not in ("", *cursor.names)]
        cursor.account, cursor.user_id = name, user_id
        cursor.profile = get_json_structure(profile)
        cursor.write(run.cursor)
    if session.context.user_id == cursor.user_id:  # the user's own posts are visible though private
        session.context.username = profile.username
    return profile


def open_timeline(profile: Profile, session: Session, cursor: Cursor) -> NodeIterator[Post]:
    """Return instaloader's iterator over the account's posts, after checking that the account still has its name.

    Raises SourceStopped if Instagram refuses, the account was renamed, or its name now belongs to someone else.
    """
    try:
        posts = session.request(profile.get_posts)
    except AccountNotFound:
        by_id, name = partial(Profile.from_id, session.context, int(cursor.user_id)), cursor.account
        with suppress(SourceStopped):
            name = session.request(by_id).username
        _check_name(name, cursor)
        raise
    _check_name(profile.username, cursor)
    timeline_id = str(posts.freeze().query_variables.get("id") or cursor.timeline_id)
    if cursor.timeline_id not in ("", timeline_id):
        current = session.request(partial(Profile.from_username, session.context, cursor.account))
        if str(current.userid) != cursor.user_id:
            raise SourceStopped(
                f"@{cursor.account} now belongs to another person: "
                "find out the artist's new name, set account to it and run 01_scrape again"
            )
    cursor.timeline_id = timeline_id
    return posts


def _check_name(name: str, cursor: Cursor) -> None:
    if name != cursor.account:
        raise SourceStopped(
            f"@{cursor.account} is called @{name} now: set account to {name!r} and run 01_scrape again"
        ) from None
