"""Each way in which Instagram refuses: told in a line, ended in good order, completed by a rerun."""

import pytest

from helpers.core.errors import RunError
from helpers.core.records import Rejection, read_rows
from helpers.scrape.ingest import ingest, verify_images
from tests.loopback_instagram import (
    COOKIES,
    assert_a_rerun_completes,
    assert_told,
    config,
    make_posts,
    stems,
    walk,
)

REFUSALS = {
    "401": "Instagram refuses (401): upgrade instaloader",
    "403": "Instagram forbids this (403): upgrade instaloader",
    "429": "too many requests (429): wait some hours",
    "checkpoint": "asks for a human check (checkpoint_required): open instagram.com in your browser",
    "challenge": "asks for a human check (challenge_required)",
    "feedback": "asks for a human check (feedback_required)",
    "revoked": "no longer accepts this request (400): upgrade instaloader",
    "html": "upgrade instaloader",
    "drop": "cannot be reached: check the network",
    "500": "has a server error (500): wait an hour",
}


@pytest.mark.parametrize("answer", REFUSALS)
@pytest.mark.parametrize("kind", ["post", "timeline", "page", "start"])
def test_a_refusal_ends_the_walk_in_good_order(serve, kind, answer):
    if kind in ("page", "start") and answer in ("checkpoint", "challenge", "feedback", "revoked"):
        words = "Instagram"  # pages are not refused in these words
    elif (kind, answer) == ("page", "html"):
        words = "shows no account @artist: check the name"
    else:
        words = REFUSALS[answer]
    site = serve(8, page=3)
    site.fail(kind, answer, after=3 if kind == "post" else 0)
    run, source, taken = walk()
    assert_told(source.stopped, words)
    if kind in ("page", "start"):
        with pytest.raises(RunError, match="no image was found: ") as caught:
            verify_images(run)
        assert "\n" not in str(caught.value)
    else:
        assert taken and f"Stopped early: {source.stopped}" in verify_images(run)
    asked = len(site.log)
    assert (
        list(ingest(config(), run, source)) == [] and len(site.log) == asked
    )  # once refused, it asks no more
    assert_a_rerun_completes(site)


@pytest.mark.parametrize("answer", [*REFUSALS, "execution", "login"])
def test_a_refusal_of_somebody_logged_in_is_told_likewise(serve, logged_in, answer):
    words = REFUSALS.get(
        answer, {"login": "has ended your login"}.get(answer, "upgrade instaloader")
    )
    site = serve(8, page=3)
    site.fail("timeline", answer, after=1)
    run, source, taken = walk()
    assert_told(source.stopped, words) and taken
    assert_a_rerun_completes(site)


@pytest.mark.parametrize(
    ("kind", "answer", "words"),
    [
        ("page", "login", "requires a login for this: log in (section Login)"),
        ("post", "login", "requires a login for this: log in (section Login)"),
        ("timeline", "execution", "upgrade instaloader"),
        ("post", "execution", "3 posts in a row failed"),
        ("start", "html", "Instagram's page lacks what instaloader looks for: upgrade"),
        ("network", "down", "cannot be reached"),
        ("post", "malformed", "3 posts in a row failed"),
        ("timeline", "404", "no longer has this endpoint (404): upgrade"),
    ],
)
def test_other_refusals_are_told_and_a_rerun_completes(serve, kind, answer, words):
    site = serve(8, page=3)
    site.fail(kind, answer)
    _, source, _ = walk()
    assert_told(source.stopped, words)
    assert_a_rerun_completes(site)


def test_a_private_account_says_who_may_see_it(serve, monkeypatch):
    site = serve(6, is_private=True)
    _, source, _ = walk()
    assert_told(source.stopped, "@artist is private: log in as a follower")
    monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    _, source, _ = walk()
    assert_told(source.stopped, "@artist is private and does not accept you")
    site.is_private = False
    assert_a_rerun_completes(site)


def test_ones_own_private_account_comes_in(serve, logged_in):
    site = serve(6, is_private=True, user_id="7")
    run, source, _ = walk()
    assert not source.stopped and stems(run) == site.images()


def test_an_account_that_is_not_there_is_told(serve):
    site = serve(6)
    run, source, _ = walk(account="@Artst")
    assert_told(source.stopped, "Instagram shows no account @artst: check the name")
    with pytest.raises(RunError, match="no image was found: Instagram shows no account"):
        verify_images(run)
    assert_a_rerun_completes(site)


@pytest.mark.parametrize("who", ["anonymous", "logged in"])
def test_an_account_that_was_renamed_says_its_new_name_and_goes_on_under_it(
    serve, monkeypatch, who
):
    if who == "logged in":
        monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    site = serve(12, page=4)
    site.fail("timeline", "429", after=1)
    walk()
    site.faults.clear()
    site.username = "new.name"
    run, source, _ = walk()
    assert_told(source.stopped, "@artist is called @new.name now: set account to 'new.name'")
    assert_a_rerun_completes(site, account="new.name")


def test_a_name_that_someone_else_has_taken_is_told(serve):
    site = serve(6)
    walk()
    site.user_id, site.posts = "43", make_posts(6, seed=9)
    run, source, _ = walk()
    assert_told(source.stopped, "@artist now belongs to another person")
    assert len(stems(run)) == len(make_posts(6)[0].images) + sum(
        len(post.images) for post in make_posts(6)[1:]
    )


def test_another_account_wants_another_run(serve):
    site = serve(6)
    walk()
    site.username, site.user_id = "other", "43"
    with pytest.raises(RunError, match="holds posts of @artist, not of @other"):
        walk(account="other")


def test_an_account_without_posts_is_told(serve):
    serve([])
    run, source, _ = walk()
    assert "there are no posts: check account" in source.stopped
    with pytest.raises(RunError, match="no image was found: there are no posts"):
        verify_images(run)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("gone", "is gone from Instagram, or shown only to those who are logged in"),
        ("changed", "Instagram shows another post in its place"),
        ("malformed", "has a format that instaloader"),
        ("404", "is no longer on Instagram"),
    ],
)
def test_a_single_post_that_cannot_be_had_is_a_line_and_the_walk_goes_on(serve, answer, words):
    site = serve(8)
    lost = site.posts[3].code
    site.fail("post", answer, about=lost)
    run, source, _ = walk()
    assert not source.stopped
    (row,) = [
        row
        for row in read_rows(run.rejected, Rejection)
        if row.file_name == f"{lost}_1" and "video" not in row.reason
    ]
    assert words in row.reason and row.reason.endswith("the next run tries it again")
    assert_a_rerun_completes(site)
