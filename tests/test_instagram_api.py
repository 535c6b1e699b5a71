"""01 on Instagram's own API: the real requests against a loopback of it, every refusal, and kills."""

import json
import logging
import random
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import papermill
import pytest

from helpers.config import ScrapeConfig, configure
from helpers.core.errors import RunError
from helpers.core.records import Post, present, read_rows
from helpers.core.redact import redact
from helpers.core.run import Run
from helpers.scrape import api_token, graph_api
from helpers.scrape.ingest import ingest, left_out, list_items, verify_images
from tests.loopback_graph import REFRESHED, TOKEN, Graph, config, walk
from tests.loopback_instagram import FakePost, killed_sessions, picture, stems


@pytest.fixture
def graph(serve, monkeypatch):
    """Start the API on loopback, and lead this process and those it starts to it."""
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", TOKEN)
    return partial(serve, kind=Graph)


def assert_whole(run, site):
    """Every image once, in order, with its bytes."""
    assert stems(run) == site.images()
    for stem in site.images():
        assert run.image(f"{stem}.jpg").read_bytes() == picture(stem)


def assert_a_rerun_completes(site, **more):
    site.faults.clear()
    site.percent = 1.0
    run, source, _ = walk(**more)
    assert not source.stopped and "Stopped early" not in verify_images(run)
    assert_whole(run, site)


def assert_no_canary(*texts):
    """In no file but the one that only its owner reads, no name of one, and no text."""
    for path in Path().resolve().rglob("*"):
        if path.is_file() and path != api_token.token_file() and not path.is_symlink():
            texts = (*texts, path.read_bytes().decode("latin-1") + str(path))
    assert not [text for text in texts if "canary" in text]


def refused(words, **more):
    """01 refuses in one line that says so, and shows no token."""
    with pytest.raises(RunError) as caught:
        walk(**more)
    told = str(caught.value)
    assert words in told and "\n" not in told and len(told) < 330, told
    assert "canary" not in told and "https://" not in told and "echoes" not in told
    return told


# what comes in


def test_two_hundred_posts_come_in_once_each_and_in_order(graph):
    site = graph(200)
    run, source, _ = walk(permission="own work")
    images = sum(len(post.slides) for post in site.posts)
    assert source.words.startswith(f"{images} files in 200 posts\n@artist by Instagram's API; ")
    assert_whole(run, site)
    rows = {post.file_name: post for post in read_rows(run.posts, Post)}
    for fake in site.posts:
        for stem in fake.images:
            row = rows[f"{stem}.jpg"]
            assert (row.shortcode, row.account, row.likes) == (fake.code, "artist", fake.likes)
            assert row.url == f"https://www.instagram.com/p/{fake.code}/"
            assert row.post_caption == fake.caption and row.permission == "own work"
            assert row.alt_text == (f"May show {stem}" if len(fake.slides) == 1 else "")
            assert datetime.fromisoformat(row.taken_at).timestamp() == fake.taken_at
            assert row.taken_at.endswith("+00:00")
    videos = [row for row in left_out(run) if row.reason == "is a video"]
    assert len(videos) == len(left_out(run)) == images - len(site.images())
    assert site.log[:3] == [("me", ""), ("media", ""), ("media", "100")]
    assert set(Counter(site.log).values()) == {1}
    site.log.clear()
    before = run.posts.read_bytes()
    _, source, _ = walk(permission="own work")
    assert not site.asked("image") and run.posts.read_bytes() == before
    assert source.news == f"0 new, {len(site.images())} as before"


def test_what_is_new_changed_and_gone_is_told(graph):
    site = graph(12)
    site.posts, newer = site.posts[2:], site.posts[:2]
    run, _, _ = walk()
    carousel = next(post for post in site.posts if len(post.images) == 3)
    before = {row.file_name: row.sha256 for row in present(run.posts)}
    gone = site.posts.pop(3)
    carousel.slides = ("image2", "image3")  # its first image was taken out
    site.posts = newer + site.posts
    site.log.clear()
    _, source, taken = walk()
    after = {row.file_name: row.sha256 for row in present(run.posts)}
    lost = {f"{stem}.jpg" for stem in (*gone.images, f"{carousel.code}_1")}
    assert before.keys() - after.keys() == lost and lost
    assert all(after[name] == before[name] for name in before.keys() & after.keys())
    fresh = [stem for post in newer for stem in post.images]
    assert site.asked("image") == fresh
    assert source.news.startswith(f"{len(fresh)} new, ")
    assert f"{len(lost)} no longer in the source" in source.news
    assert "Stopped early" not in verify_images(run)


def test_days_and_a_limit_of_posts_hold(graph):
    site = graph(20)
    days = [datetime.fromtimestamp(post.taken_at, UTC).date().isoformat() for post in site.posts]
    run, _, _ = walk(since=days[9], until=days[3], max_posts=4)
    assert stems(run) == [stem for post in site.posts[3:7] for stem in post.images]
    run, source, _ = walk()
    assert sorted(stems(run)) == sorted(site.images()) and "no longer" not in source.news


def test_one_image_first_and_then_all_asks_for_nothing_twice(graph):
    site = graph(12)
    run = Run("art")
    source = list_items(config(), run)
    first = next(ingest(config(), run, source))
    assert first.post.shortcode == site.posts[0].code and first.progress == "post 1 of 12"
    list(ingest(config(), run, source))
    assert_whole(run, site)
    assert set(Counter(site.log).values()) == {1}


def test_what_may_be_missing_may_be_missing(graph):
    site = graph(8)
    lacks = (
        ("shortcode",), ("shortcode", "permalink"), ("caption", "alt_text"), ("timestamp",),
        ("like_count", "username"), ("media_url",), ("children",), ("thumbnail_url", "media_type"),
    )  # fmt: skip
    site.posts = [
        FakePost(post.code, post.taken_at, ("image",) * (3 if "children" in lack else 1), lacks=lack)
        for post, lack in zip(site.posts, lacks, strict=True)
    ]  # fmt: skip
    run, source, _ = walk()
    rows = read_rows(run.posts, Post)
    assert len(rows) == 6 and rows[0].shortcode == site.posts[0].code
    assert rows[1].shortcode.isdecimal() and rows[1].url == ""
    assert rows[2].post_caption == rows[2].alt_text == "" and rows[3].taken_at == ""
    assert rows[4].likes is None and rows[4].account == "artist"
    reasons = {row.file_name: row.reason for row in left_out(run)}
    assert "withholds what it flags for copyright" in reasons[f"{site.posts[5].code}_1"]
    assert "whose images the API does not list; the next run" in reasons[f"{site.posts[6].code}_1"]
    for post in site.posts:
        post.lacks = ()
    run, source, _ = walk()
    assert len(present(run.posts)) == 7 + 3 and not left_out(run)


def test_a_carousel_that_is_not_listed_for_once_is_not_gone(graph):
    site = graph([FakePost("Ccarousel01", 1_700_000_000, ("image",) * 3)])
    run, _, _ = walk()
    site.posts[0].lacks = ("children",)
    _, source, _ = walk()
    assert len(present(run.posts)) == 3 and "no longer" not in source.news


class WithoutIds(Graph):
    """Instagram's API, where the posts and slides of these ids, and those that are null, have none."""

    hidden: tuple[str, ...] = ()

    def object(self, post):
        shown = super().object(post)
        parts = [self.hide(part) for part in shown.get("children", {}).get("data", ())]
        return self.hide(shown | ({"children": {"data": parts}} if parts else {}))

    def hide(self, shown):
        return shown | {"id": None} if shown["id"] in self.hidden else shown


def test_a_post_or_slide_without_an_id_is_told_and_taken_once_it_has_one(graph):
    site = graph(
        [FakePost(f"Cpost00{i}", 1_700_000_000 - i, ("image",) * i) for i in (1, 2, 3)],
        kind=WithoutIds,
    )
    _, second, third = (site.object(post) for post in site.posts)
    site.hidden = (second["id"], third["children"]["data"][0]["id"])
    run, source, _ = walk()
    assert source.words.startswith("6 files in 3 posts")
    left = ["Cpost002_1", "Cpost002_2", "Cpost003_1"]
    assert [row.file_name for row in left_out(run)] == left
    reason = "has no id in Instagram's answer; the next run tries it again"
    assert {row.reason for row in left_out(run)} == {reason}
    assert "3 left out: Cpost002_1 has no id" in verify_images(run)
    assert stems(run) == ["Cpost001_1", "Cpost003_2", "Cpost003_3"]
    site.hidden = ()
    run, source, _ = walk()
    assert not left_out(run) and sorted(stems(run)) == site.images()
    site.hidden = (second["id"],)
    _, source, _ = walk()
    assert "no longer" not in source.news and len(present(run.posts)) == 6


def test_an_answer_that_is_no_post_is_told(graph):
    site = graph(3, kind=WithoutIds)
    site.object = lambda post, whole=site.object: whole(post) if post is site.posts[0] else None
    run, _, _ = walk()
    assert [row.file_name for row in left_out(run)] == ["post-2_1", "post-3_1"]


def test_posts_of_others_are_left_out(graph):
    site = graph(3)
    site.posts[0].owner = "friend"
    run, _, _ = walk(permission="own work")
    assert {row.account for row in read_rows(run.posts, Post)} == {"artist"}
    (row,) = (row for row in left_out(run) if row.file_name == f"{site.posts[0].code}_1")
    assert row.reason == "is a post of @friend, and not the account's own"


def test_the_cover_of_a_video_comes_if_it_is_wanted(graph):
    site = graph(5)
    run, _, _ = walk(video_covers=True)
    assert len(stems(run)) == sum(len(post.slides) for post in site.posts)


def test_a_renamed_account_goes_on_and_another_one_is_refused(graph):
    site = graph(4)
    walk()
    site.username = "artist.new"
    run, source, _ = walk(account="@artist.new")
    assert source.news.startswith("0 new") and len(present(run.posts)) == len(site.images())
    site.user_id, site.username = "43", "somebody"
    refused("holds posts of @artist.new, not of @somebody: give this account a run name")


def test_what_the_api_does_not_list_is_told(graph):
    graph(4, media_count=6)
    _, source, _ = walk()
    assert "Instagram counts 6 posts and the API lists 4" in source.words


# addresses that expire


def listed_and_expired(site):
    run = Run("art")
    source = list_items(config(), run)
    site.links = "2"
    return run, source


def test_expired_addresses_are_asked_for_again_once_a_post(graph):
    site = graph(10)
    run, source = listed_and_expired(site)
    list(ingest(config(), run, source))
    assert_whole(run, site)
    assert len(site.asked("object")) == len({post.code for post in site.posts if post.images})
    assert set(Counter(site.asked("object")).values()) == {1}


def test_what_was_deleted_meanwhile_is_told(graph):
    site = graph(7)
    run, source = listed_and_expired(site)
    deleted = site.posts.pop(0)
    carousel = next(post for post in site.posts if len(post.images) == 3)
    carousel.slides = ("image", "image3")
    list(ingest(config(), run, source))
    reasons = {row.file_name: row.reason for row in left_out(run)}
    assert reasons[deleted.images[0]] == "is no longer on Instagram"
    assert reasons[f"{carousel.code}_2"] == "is no longer part of its post"
    assert run.image(f"{carousel.code}_3.jpg").read_bytes() == picture(f"{carousel.code}_3")
    _, source, _ = walk()
    assert {row.reason for row in left_out(run)} == {"is a video"} and not source.stopped


@pytest.mark.parametrize(
    ("answer", "words"),
    [("4", "wait 7 minutes"), ("190.463", "the token has expired on 11-Sep-26")],
)
def test_a_refusal_in_the_middle_of_a_carousel_stops_and_a_rerun_completes(graph, answer, words):
    site = graph([FakePost("Ccarousel01", 1_700_000_000, ("image",) * 4)], wait_minutes=7)
    run = Run("art")
    source = list_items(config(), run)
    taken = ingest(config(), run, source)
    next(taken), next(taken)
    site.links = "2"
    site.fail("object", answer)
    assert list(taken) == [] and words in source.stopped and "canary" not in source.stopped
    assert f"Stopped early: {source.stopped}" in verify_images(run)
    asked = len(site.log)
    list(ingest(config(), run, source))
    assert len(site.log) == asked and source.stopped  # once refused, it asks no more
    assert_a_rerun_completes(site)
    assert Counter(site.asked("image"))["Ccarousel01_1"] == 1


def test_an_address_that_stays_expired_is_tried_again_by_the_next_run(graph):
    site = graph(3)
    name = site.posts[0].images[0]
    site.fail("image", "404", about=name)
    run, _, _ = walk()
    (row,) = (row for row in left_out(run) if row.file_name == name)
    assert row.reason == "is no longer at its URL (404); the next run tries it again"
    site.fail("object", "2")
    run, _, _ = walk()
    (row,) = (row for row in left_out(run) if row.file_name == name)
    assert row.reason.startswith("has an address that expired, and gets no new one now")
    site.faults.clear()
    walk()
    assert sorted(stems(run)) == sorted(site.images())


def test_minutes_are_kept_to(graph):
    graph(4)
    _, source, taken = walk(max_minutes=1e-9)
    assert source.stopped.startswith("max_minutes=1e-09 is used up: run 01_scrape again")


# limits


def test_a_listing_stops_before_the_limit_and_goes_on_at_its_page(graph):
    site = graph(30, page=10, wait_minutes=12)
    site.on_request = lambda kind, _: setattr(site, "percent", 96.0 if kind == "media" else 1.0)
    refused("Instagram's limit of requests is used up (96 %): wait 12 minutes, then run 01_scrape")
    assert site.asked("media") == [""]
    refused("is used up (96 %)")
    site.on_request = lambda *_: None
    assert_a_rerun_completes(site)
    assert site.asked("media") == ["", "10", "20"]


def test_a_post_published_during_the_listing_doubles_nothing_and_comes_next(graph):
    site = graph(12, page=4)
    site.posts, newest = site.posts[1:], site.posts[0]

    def publish(kind, phase):
        if (kind, phase) == ("media", "answered") and newest not in site.posts:
            site.posts = [newest, *site.posts]  # all others move down by one

    site.on_request = publish
    run, _, _ = walk()
    assert stems(run) == [stem for post in site.posts[1:] for stem in post.images]
    run, _, _ = walk()
    assert sorted(stems(run)) == sorted(site.images())


def test_a_listing_of_yesterday_begins_anew(graph):
    site = graph(30, page=10)
    site.fail("media", "4", after=1)
    refused("is used up (code 4): wait an hour")
    cursor = json.loads(Run("art").cursor.read_text())
    cursor["frozen"]["day"] = (date.today() - timedelta(days=1)).isoformat()
    Run("art").cursor.write_text(json.dumps(cursor))
    assert_a_rerun_completes(site)
    assert site.asked("media").count("") == 2


def test_a_cursor_that_has_expired_is_left_for_the_top(graph):
    site = graph(30, page=10)
    site.fail("media", "100", about="20", times=1)
    run, _, _ = walk()
    assert_whole(run, site)
    assert site.asked("media") == ["", "10", "20", "", "10", "20"]


def test_a_cursor_that_expires_again_and_again_is_told(graph):
    site = graph(30, page=10)
    site.fail("media", "100", about="20")
    refused("does not know what was asked for (code 100)")
    assert site.asked("media").count("20") == 2


def test_a_page_that_is_too_much_for_instagram_is_asked_for_in_smaller_ones(graph):
    site = graph(40)
    site.fail("media", "1", times=2)
    run, _, _ = walk()
    assert_whole(run, site)
    assert site.limits == [6, 100]


def test_a_field_that_the_api_does_not_know_is_done_without(graph):
    site = graph(4, unknown="alt_text")
    run, _, _ = walk()
    assert_whole(run, site)


# refusals

REFUSALS = {
    "1": "has a server error (1): wait some minutes",
    "2": "has a server error (2)",
    "3": "lacks a permission (code 3)",
    "4": "limit of requests is used up (code 4)",
    "10": "lacks a permission (code 10): allow instagram_business_basic, make yourself a tester",
    "17": "limit of requests",
    "100": "does not know what was asked for (code 100): take a newer version",
    "102": "the token is not accepted (code 102): make a new one",
    "190": "the token is not accepted (code 190): make a new one",
    "190.458": "is of an app that the account has removed",
    "190.459": "asks for a human check (code 190): open instagram.com",
    "190.460": "has ended, as the password changed",
    "190.463": "the token has expired on 11-Sep-26 (code 190): make a new one",
    "200": "lacks a permission (code 200)",
    "368": "has blocked this for a time (code 368): look at Account status",
    "613": "limit of requests",
    "803": "does not know what was asked for (code 803)",
    "80002": "limit of requests",
    "12345": "refuses (code 12345): wait an hour",
    "http404": "the answer (HTTP 404) is no data of the API: a proxy or a page to sign in",
    "http429": "limit of requests is used up (code 429)",
    "http502": "has a server error (502)",
    "html": "the answer (HTTP 200) is no data of the API: a proxy or a page to sign in",
    "away": "the answer (HTTP 302) leads to another address",
    "drop": "graph.instagram.com cannot be reached (",
    "list": "(HTTP 200) is no data",
    "uncoded": "refuses (code 0): wait an hour; else take a newer version",
    "empty": "gives an answer that is not understood: take a newer version",
}


@pytest.mark.parametrize("answer", REFUSALS)
@pytest.mark.parametrize("kind", ["me", "media"])
def test_a_refusal_is_told_in_a_line_and_a_rerun_completes(graph, caplog, kind, answer):
    site = graph(8, page=3)
    site.fail(kind, answer, after=int(kind == "media" and answer not in ("100", "803")))
    with caplog.at_level(logging.DEBUG):
        refused(REFUSALS[answer])
    assert not site.asked("elsewhere") and not site.asked("image")
    assert_a_rerun_completes(site)
    assert "graph.instagram.com" in caplog.text and "canary" not in caplog.text
    assert_no_canary()


def test_an_api_that_does_not_answer_is_told(graph, monkeypatch):
    monkeypatch.setattr(graph_api, "TIMEOUT_S", (5.0, 0.2))
    site = graph(3)
    site.fail("media", "silence")
    refused("graph.instagram.com cannot be reached (ReadTimeout)")
    assert site.asked("media") == ["", "", ""]


def test_pages_in_a_circle_end(graph):
    site = graph(8, page=3)
    site.fail("media", "circle", after=1)
    refused("gives an answer that is not understood")


def test_a_certificate_that_is_not_accepted_says_to_check_the_clock(graph, monkeypatch):
    graph(2)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    refused("is not accepted: check this machine's date and time, and whether a proxy is in")


def test_no_network_at_all_is_told(graph, monkeypatch):
    graph(2)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    refused(
        "graph.instagram.com cannot be reached (ProxyError): check the network, and HTTPS_PROXY"
    )


def test_a_personal_account_an_empty_one_and_one_that_is_hidden_are_told(graph):
    site = graph(2, account_type="PERSONAL")
    refused("@artist is a personal account, which the API does not show: switch to a professional")
    site.account_type, site.posts = "BUSINESS", []
    refused("@artist has no posts, and the API shows none")
    site.media_count = 9
    refused("@artist has 9 posts, and the API shows none: allow the token instagram_business_basic")


def test_the_token_of_another_account_is_told(graph):
    graph(2)
    refused("INSTAGRAM_ACCESS_TOKEN is of @artist, and account is 'other'", account="other")
    assert not Run("art").cursor.exists()


# the token


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "INSTAGRAM_ACCESS_TOKEN is not set: set the environment variable"),
        ("two words of canary", "INSTAGRAM_ACCESS_TOKEN holds no token, which is one long word"),
        ("sessionid=canary-1234567890; a=b", "holds no token"),
        ("EAA" + "canary7f3e" * 5, "one of Instagram Login begins with IGAA, and yours does not"),
        ("IGAA" + "canary0000" * 5, "the token is not accepted (code 190): make a new one"),
    ],
)
def test_a_token_that_is_none_is_told(graph, monkeypatch, value, words):
    graph(2)
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", value)
    refused(words)


def test_a_token_with_quotes_around_it_does(graph, monkeypatch):
    site = graph(2)
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", f' "{TOKEN}"\n')
    run, _, _ = walk()
    assert_whole(run, site)


def test_a_token_is_no_parameter(graph):
    for given in ({"account": TOKEN}, {"more": {"access_token": "short"}}):
        with pytest.raises(RunError, match="holds a secret") as caught:
            configure(ScrapeConfig, given.pop("more", {}), run="art", source="api", **given)
        assert "canary" not in str(caught.value)


def test_a_token_of_nobody_is_taken_out_and_a_picture_is_left_alone():
    assert redact(f"token {TOKEN[:70]}xyz.") == "token [INSTAGRAM_ACCESS_TOKEN]."
    in_base64 = f"iVBORw0KGgo+/abcIGAA{'A' * 200}/x"
    assert redact(in_base64) == in_base64


def test_a_token_that_no_one_has_read_yet_is_taken_out(monkeypatch):
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", "EAA-canary-unread-31bc")
    assert redact("it is EAA-canary-unread-31bc") == "it is [INSTAGRAM_ACCESS_TOKEN]"


def refresh():
    command = [sys.executable, "-m", "helpers.scrape.api_token"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("fresh", [REFRESHED, TOKEN])
def test_a_token_is_refreshed_on_request_and_its_last_day_told(graph, fresh):
    site = graph(3, refreshed=fresh)
    _, source, _ = walk()
    assert "the token lasts 60 days from when it was made; python -m" in source.words
    done = refresh()
    last_day = (datetime.now(UTC) + timedelta(seconds=5_183_944)).date().isoformat()
    assert done.stdout.startswith(f"the token's last day is {last_day}; it is kept in ")
    assert stat.S_IMODE(api_token.token_file().stat().st_mode) == 0o600
    site.tokens = (fresh,)  # the one before is no longer taken
    _, source, _ = walk()
    assert f"the token's last day is {last_day}" in source.words
    assert refresh().returncode == 0 and api_token.read_token().value == fresh
    assert_no_canary(done.stdout, done.stderr, source.words, repr(api_token.read_token()))


def test_a_last_day_that_is_near_says_to_refresh(graph, monkeypatch):
    graph(3)
    monkeypatch.delenv("INSTAGRAM_ACCESS_TOKEN")
    assert refresh().returncode == 1
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", TOKEN)
    refresh()
    monkeypatch.delenv("INSTAGRAM_ACCESS_TOKEN")  # the kept one does
    kept = json.loads(api_token.token_file().read_text())
    kept["last_day"] = (date.today() + timedelta(days=3)).isoformat()
    api_token.token_file().write_text(json.dumps(kept))
    _, source, _ = walk()
    assert (
        f"{kept['last_day']}: refresh it now by python -m helpers.scrape.api_token" in source.words
    )
    api_token.token_file().write_text("{")
    refused("holds no token: delete it, and refresh the token again")


def test_another_token_in_the_environment_comes_before_the_kept_one(graph, monkeypatch):
    site = graph(3)
    refresh()
    other = "IGAA" + "canary5555" * 8
    site.tokens = (other,)
    monkeypatch.setenv("INSTAGRAM_ACCESS_TOKEN", other)
    walk()
    assert api_token.read_token().last_day == ""


@pytest.mark.parametrize("answer", ["190.463", "100", "empty", "drop"])
def test_a_refresh_that_is_refused_is_told_in_a_line(graph, answer):
    site = graph(1)
    site.fail("refresh", answer)
    done = refresh()
    assert done.returncode == 1 and done.stderr.startswith("error: ") and not done.stdout
    assert done.stderr.count("\n") == 1 and "canary" not in done.stderr
    assert not api_token.token_file().exists()


@pytest.mark.parametrize("end", ["well", "refused", "crash"])
def test_no_token_is_written_or_shown(graph, capfd, end):
    site = graph(5, page=3)
    if end == "refused":
        site.fail("media", "10", after=1)
    if end == "crash":
        Path("runs/art").mkdir(parents=True)
        Path("runs/art/images").write_text("in the way")
    target, failed = Path("runs/art/notebooks/01_scrape.ipynb"), ""
    target.parent.mkdir(parents=True, exist_ok=True)
    given = {"run": "art", "source": "api"}
    try:
        papermill.execute_notebook("notebooks/01_scrape.ipynb", target, given, progress_bar=False)
    except papermill.PapermillExecutionError as error:
        failed = str(error)
    assert (end != "well") == bool(failed)
    captured = capfd.readouterr()
    assert_no_canary(captured.out, captured.err, failed)
    assert site.asked("media") and "@artist by Instagram's API" in target.read_text() or failed
    if end == "well":
        assert verify_images(Run("art")).startswith(f"{len(site.images())} images")


# kills

SCRIPT = """
from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.ingest import ingest, list_items
config = ScrapeConfig(run="art", source="api")
list(ingest(config, Run("art"), list_items(config, Run("art"))))
"""


def assert_kills_cost_nothing(site, kills, rng):
    sessions = killed_sessions(site, SCRIPT, kills, rng)
    assert len(sessions) == kills
    run, source, _ = walk()
    assert not source.stopped and source.news.endswith("as before")
    assert_whole(run, site)
    asked = Counter(site.asked("image"))
    assert sum(asked.values()) <= len(site.images()) + kills  # an image that was on its way
    assert_no_canary()


def test_kills_lose_nothing_and_repeat_at_most_one_image_each(graph):
    assert_kills_cost_nothing(graph(40, page=20), 5, random.Random(1))


@pytest.mark.soak
def test_thirty_kills_lose_nothing_and_repeat_at_most_one_image_each(graph):
    site = graph(200)
    assert_kills_cost_nothing(site, 30, random.Random(2))


HARD = (
    "import logging\nfrom helpers.core.process import prepare_process\n"
    "prepare_process()\nlogging.basicConfig(level=logging.DEBUG)\n" + SCRIPT
)
LACKS = ((), ("caption", "alt_text"), ("like_count", "username"), ("timestamp",), ("shortcode",))


def session(site, rng, heard):
    """A process that is killed around a random request, if it comes so far, and whose addresses may expire before."""
    process = subprocess.Popen(
        [sys.executable, "-c", HARD], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    countdown, phase = rng.randint(2, 30), rng.choice(("asked", "answered"))
    expires = rng.randint(1, countdown) if rng.random() < 0.5 else 0

    def strike(_, now):
        nonlocal countdown
        countdown -= now == phase
        if now == phase and countdown == expires:
            site.links = str(int(site.links) + 1)
        if countdown == 0:
            threading.Timer(rng.choice((0.0, rng.uniform(0, 0.02))), process.kill).start()

    site.on_request = strike
    heard.append(process.communicate()[0].decode())
    site.on_request = lambda *_: None
    return process.returncode == -signal.SIGKILL


@pytest.mark.soak
def test_all_that_may_go_wrong_in_turn_loses_nothing_and_shows_no_token(graph):
    """Each refusal, limits, addresses that expire, fields that are missing, and thirty kills in between."""
    site, rng, heard = graph(200, wait_minutes=5), random.Random(3), []
    for number, post in enumerate(site.posts):
        post.lacks = LACKS[number % len(LACKS)]
    faults = [(kind, answer) for kind in ("me", "media") for answer in REFUSALS]
    faults += [("object", "4"), ("object", "190.463"), ("object", "10")] * 2
    rng.shuffle(faults)
    kills = refusals = throttled = 0
    while kills < 30 or faults:
        is_fair = kills < 30 and (not faults or rng.random() < 0.4)
        if is_fair:
            kills += session(site, rng, heard)
        elif rng.random() < 0.1:
            site.percent = 97.0
            assert not session(site, rng, heard)
            site.percent, throttled = 1.0, throttled + 1
        else:
            site.fail(*faults.pop())
            refusals += not session(site, rng, heard)
            site.faults.clear()
        assert stems(Run("art")) == site.images()[: len(stems(Run("art")))]  # so far, in order
    assert_a_rerun_completes(site)
    rows = read_rows(Run("art").posts, Post)
    assert len({row.file_name for row in rows}) == len(rows) == len(site.images())
    assert refusals > 30 and throttled, (kills, refusals, throttled)
    assert any("graph.instagram.com" in text for text in heard) and any(
        "Traceback" in t for t in heard
    )
    assert_no_canary(*heard)
    print(f"{kills} kills, {refusals} refusals, {throttled} limits, {len(site.images())} images")
