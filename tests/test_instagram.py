"""01 on an Instagram of loopback: the real instaloader, real JPEGs, every refusal, and kills."""

import json
import random
import shutil
from collections import Counter

import pytest

from helpers.core.errors import RunError
from helpers.core.records import Post, Rejection, read_rows
from helpers.core.run import Run
from helpers.host import here
from helpers.mirror import sync
from helpers.scrape import ingest as ingest_module
from helpers.scrape.ingest import ingest, list_items, verify_images
from tests.conftest import lines
from tests.drive import mounted
from tests.loopback_instagram import (
    COOKIES,
    assert_a_rerun_completes,
    assert_told,
    config,
    killed_sessions,
    picture,
    stems,
    walk,
)

SESSION_STARTS = ("page", "start", "profile")  # what instaloader asks whenever it begins


def assert_whole(run, site):
    """Every image once, in order, with its bytes."""
    assert stems(run) == site.images()
    for stem in site.images():
        assert run.image(f"{stem}.jpg").read_bytes() == picture(stem)
    assert "left out" in verify_images(run)


@pytest.mark.parametrize(
    ("who", "count"),
    [
        ("anonymous", 200),
        ("logged in", 50),
        pytest.param("logged in", 200, marks=pytest.mark.soak),
    ],
)
def test_two_hundred_posts_come_in_once_each_and_in_order(serve, monkeypatch, who, count):
    if who == "logged in":
        monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    site = serve(count)
    run, source, taken = walk(permission="permission of the artist")
    assert (
        source.words.startswith(f"@artist: {count} posts, {who}, instaloader 4.")
        and not source.stopped
    )
    assert_whole(run, site)
    rows = {post.file_name: post for post in read_rows(run.posts, Post)}
    for fake in site.posts:
        for stem in fake.images:
            row = rows[f"{stem}.jpg"]
            assert (row.shortcode, row.account, row.likes) == (fake.code, "artist", fake.likes)
            assert row.url == f"https://www.instagram.com/p/{fake.code}/"
            assert row.post_caption == fake.caption and row.alt_text == f"May show {stem}"
            assert (row.width_px, row.height_px) == (48, 60)  # the widest rendition
            assert row.size_bytes == len(picture(stem))
            assert row.permission == "permission of the artist" and row.taken_at.endswith("+00:00")
    videos = {row.file_name for row in read_rows(run.rejected, Rejection)}
    assert len(videos) == sum(post.slides.count("video") for post in site.posts)
    assert set(Counter(site.log).values()) <= {1, 2} and not site.asked("elsewhere")
    site.log.clear()
    walk()
    assert not site.asked("image") and not site.asked("post") and len(site.log) <= 3


def test_a_rerun_takes_only_what_was_published_since(serve):
    site = serve(20, page=6)
    site.posts, newer = site.posts[4:], site.posts[:4]
    walk()
    before = {path: path.stat().st_mtime_ns for path in Run("art").images.iterdir()}
    site.posts = newer + site.posts
    site.log.clear()
    run, _, taken = walk()
    assert site.asked("post") == [post.code for post in newer] and not site.asked("timeline")
    assert sorted(stems(run)) == sorted(site.images())
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_more_than_a_page_of_news_is_taken_up_to_what_is_known(serve):
    site = serve(30, page=5)
    site.posts, newer = site.posts[12:], site.posts[:12]
    walk()
    site.posts = newer + site.posts
    site.log.clear()
    run, _, _ = walk()
    assert sorted(stems(run)) == sorted(site.images())
    assert len(site.asked("post")) <= 13


def test_pinned_posts_hide_nothing(serve):
    site = serve(20, page=6)
    site.posts = [site.posts[15], site.posts[9], *site.posts]
    del site.posts[17], site.posts[11]
    assert len({post.code for post in site.posts}) == 20
    site.posts, newest = site.posts[:2] + site.posts[4:], site.posts[2:4]
    run, _, _ = walk()
    assert stems(run) == site.images()
    site.posts = site.posts[:2] + newest + site.posts[2:]
    run, _, _ = walk()
    assert sorted(stems(run)) == sorted(site.images())


def test_posts_published_during_a_long_walk_come_with_its_end(serve):
    site = serve(14, page=4)
    site.posts, newer = site.posts[2:], site.posts[:2]
    site.fail("post", "429", after=6)
    walk()
    site.faults.clear()
    site.posts = newer + site.posts
    run, source, _ = walk()
    assert not source.stopped and sorted(stems(run)) == sorted(site.images())


@pytest.mark.parametrize("who", ["anonymous", "logged in"])
def test_days_bound_the_walk(serve, monkeypatch, who):
    if who == "logged in":
        monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    site = serve(20)  # a post a day
    days = [int(post.taken_at) for post in site.posts]
    iso = [__import__("datetime").datetime.fromtimestamp(day).strftime("%Y-%m-%d") for day in days]
    run, _, _ = walk(since=iso[9], until=iso[5])
    wanted = [stem for post in site.posts[5:10] for stem in post.images]
    assert stems(run) == wanted
    if who == "anonymous":
        assert len(site.asked("post")) == 11  # no further than the first that is too old
    run, _, _ = walk(since=iso[12], until=iso[2])
    assert sorted(stems(run)) == sorted(s for post in site.posts[2:13] for s in post.images)
    run, _, _ = walk()
    assert sorted(stems(run)) == sorted(site.images())


def test_a_limit_of_posts_holds_and_may_be_raised(serve):
    site = serve(20)
    run, source, _ = walk(max_posts=5)
    assert stems(run) == [s for post in site.posts[:5] for s in post.images]
    site.log.clear()
    walk(max_posts=5)
    assert site.log == [] and not source.stopped
    run, _, _ = walk(max_posts=8)
    assert stems(run) == [s for post in site.posts[:8] for s in post.images]


def test_single_posts_come_by_shortcode_or_address(serve):
    site = serve(9)
    a, b, c = site.posts[1].code, site.posts[4].code, site.posts[0].code
    asked = (
        f"{a}, https://www.instagram.com/p/{b}/?img_index=2\nwww.instagram.com/artist/reel/{c}/ {a}"
    )
    run, source, _ = walk(account="", posts=asked)
    assert source.words.startswith("3 posts requested") and not source.stopped
    assert [post.code for post in (site.posts[1], site.posts[4], site.posts[0])] == site.asked(
        "post"
    )
    assert set(stems(run)) == {s for i in (0, 1, 4) for s in site.posts[i].images}
    assert {post.account for post in read_rows(run.posts, Post)} == {"artist"}
    site.log.clear()
    walk(account="", posts=asked)
    assert site.log == []


def test_a_caption_cut_within_an_emoji_does_no_harm(serve):
    site = serve(6)
    site.posts[1].caption = "cut \ud83d"
    run, _, _ = walk()
    assert stems(run) == site.images()
    assert read_rows(run.posts, Post)[1].post_caption == "cut ?"


def test_the_cover_of_a_video_comes_if_it_is_wanted(serve):
    site = serve(5)
    run, _, _ = walk(video_covers=True)
    assert len(stems(run)) == sum(len(post.slides) for post in site.posts)


def test_one_image_first_and_then_all_asks_for_nothing_twice(serve):
    site = serve(12)
    run = Run("art")
    source = list_items(config(), run)
    first = next(ingest(config(), run, source))
    assert first.post.shortcode == site.posts[0].code and "post 1 of 12" in first.progress
    list(ingest(config(), run, source))
    assert_whole(run, site)
    assert max(Counter(entry for entry in site.log if entry[0] != "page").values()) == 1


def test_an_image_that_was_lost_comes_back(serve):
    site = serve(12)
    run, _, _ = walk()
    lost = site.posts[6].images[-1]
    run.image(f"{lost}.jpg").unlink()
    site.log.clear()
    walk()
    assert site.asked("image") == [lost] and site.asked("post") == [site.posts[6].code]
    verify_images(run)


def test_a_cursor_that_is_ahead_of_the_images_is_made_good(serve):
    """As a copy to Drive that was cut short leaves them."""
    site = serve(12)
    run, _, _ = walk()
    kept = run.posts.read_text().splitlines(keepends=True)
    run.posts.write_text("".join(kept[:5]))
    for line in kept[5:]:
        run.image(json.loads(line)["file_name"]).unlink()
    walk()
    assert sorted(stems(run)) == sorted(site.images()) and len(stems(run)) == len(set(stems(run)))


# kills

SCRIPT = """
import sys
from helpers.host import colab
from helpers.config import ScrapeConfig
from helpers.core.run import Run
from helpers.scrape.ingest import ingest, list_items
config = ScrapeConfig(run="art", source="instagram", account="artist", pauses=False)
list(ingest(config, Run("art"), list_items(config, Run("art"))))
"""


def assert_kills_cost_nothing(site, kills, rng):
    sessions = killed_sessions(site, SCRIPT, kills, rng)
    assert len(sessions) == kills
    begin = len(site.log)
    run, source, _ = walk()
    sessions.append(site.log[begin:])
    assert not source.stopped and sorted(stems(run)) == sorted(site.images())
    assert stems(run) == site.images()
    assert_whole(run, site)
    seen = set()
    for session in sessions:
        asked = [entry for entry in session if entry[0] not in SESSION_STARTS]
        asked = [entry for entry in asked if entry != ("timeline", "")]  # opens it when logged in
        if asked[:1] == asked[1:2]:  # the last one of the process killed before was heard late
            asked = asked[1:]
        assert len(asked) == len(set(asked))
        assert len(seen & set(asked)) <= 1, seen & set(asked)
        seen |= set(asked)


def test_kills_lose_nothing_and_repeat_at_most_one_request(serve):
    assert_kills_cost_nothing(serve(26, page=5), 7, random.Random(1))


@pytest.mark.soak
@pytest.mark.parametrize("who", ["anonymous", "logged in"])
def test_fifty_kills_lose_nothing_and_repeat_at_most_one_request_each(serve, monkeypatch, who):
    if who == "logged in":
        monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    assert_kills_cost_nothing(serve(200), 50, random.Random(2))


# pictures


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("cut", "could not be downloaded completely"),
        ("short", "does not decode"),
        ("slow", "came too slowly"),
        ("html", "is a web page instead of an image"),
        ("500", "is not available now (500)"),
        ("drop", "could not be downloaded completely"),
    ],
)
def test_a_picture_that_fails_is_tried_three_times_and_again_by_the_next_run(serve, answer, words):
    site = serve(4)
    name = site.posts[1].images[1]
    site.fail("image", answer, about=name)
    run, source, _ = walk(max_image_s=2.0 if answer == "slow" else 60.0)
    (row,) = [row for row in read_rows(run.rejected, Rejection) if "video" not in row.reason]
    assert row.file_name == name and words in row.reason
    assert row.reason.endswith("the next run tries it again")
    assert site.asked("image").count(name) == 3 and name not in stems(run)
    assert_a_rerun_completes(site)
    assert name not in verify_images(run)


@pytest.mark.parametrize("answer", ["cut", "short", "html", "drop", "500"])
def test_a_picture_that_fails_once_comes_at_the_second_try(serve, answer):
    site = serve(4)
    site.fail("image", answer, times=1)
    run, _, _ = walk()
    assert_whole(run, site)


def test_media_links_that_have_expired_are_asked_for_afresh_once_a_post(serve, logged_in):
    site = serve(7, page=12)
    site.fail("image", "drop", after=1)
    walk()  # stops with a page of links in the cursor
    site.faults.clear()
    site.links = "2"
    site.log.clear()
    run, source, _ = walk()
    assert not source.stopped and sorted(stems(run)) == sorted(site.images())
    assert max(Counter(site.asked("post")).values()) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [("redirect", "media hosts"), ("loop", "redirected"), ("huge", "larger than 1 MB")],
)
def test_a_picture_that_leads_elsewhere_or_is_huge_is_refused_for_good(serve, answer, words):
    site = serve(4)
    name = site.posts[1].images[0]
    site.fail("image", answer, about=name)
    run, _, _ = walk(max_image_mb=1)
    (row,) = [row for row in read_rows(run.rejected, Rejection) if "video" not in row.reason]
    assert words in row.reason and "tries it again" not in row.reason
    assert not site.asked("elsewhere") and site.asked("image").count(name) <= 4
    site.log.clear()
    walk()
    assert not site.asked("image")


def test_when_every_download_fails_the_walk_stops(serve):
    site = serve(20)
    site.fail("image", "drop", after=2)
    run, source, _ = walk()
    assert_told(source.stopped, "the last 12 downloads failed: check the network")
    assert_a_rerun_completes(site)


# pace


def test_minutes_are_kept_to(serve):
    serve(8)
    run, source, taken = walk(max_minutes=1e-6)
    assert source.stopped.startswith("max_minutes=1e-06 is used up: run 01_scrape again to go on")


def test_a_pause_longer_than_the_budget_stops_the_walk_and_says_so(serve):
    site = serve(8)
    source = list_items(config(max_minutes=5), Run("art"))
    pace = source.items.session.context._rate_controller
    for _ in range(80):  # as if so many pages had been asked for just now
        pace.wait_before_query("x")
        pace._query_timestamps["other"] = pace._query_timestamps["x"]
    list(ingest(config(max_minutes=5), Run("art"), source))
    assert (
        "Instagram's rate limit needs a pause of 11 minutes and max_minutes=5 ends before"
        in source.stopped
    )
    assert_a_rerun_completes(site)


def test_a_place_of_another_login_or_of_long_ago_is_walked_from_the_top(serve, monkeypatch):
    site = serve(16, page=4)
    site.fail("post", "429", after=9)
    run, _, _ = walk()
    site.faults.clear()
    monkeypatch.setenv("INSTAGRAM_COOKIES", COOKIES)
    site.fail("timeline", "429", after=3)
    walk()
    cursor = json.loads(run.cursor.read_text())
    cursor["frozen"]["node"]["best_before"] = 1.0
    run.cursor.write_text(json.dumps(cursor))
    site.log.clear()
    assert_a_rerun_completes(site)
    assert len(site.asked("image")) < len(site.images())


def test_what_another_instaloader_kept_is_asked_for_again(serve):
    site = serve(10, page=4)
    site.fail("image", "429", after=9)
    site.fail("post", "429", after=6)
    run, _, _ = walk()
    cursor = json.loads(run.cursor.read_text())
    del cursor["frozen"]["node"]["doc_id"]
    cursor["pending"] = {"node": {}, "instaloader": {"version": "3", "node_type": "Post"}}
    run.cursor.write_text(json.dumps(cursor))
    assert_a_rerun_completes(site)


def test_a_long_walk_is_copied_to_drive_as_it_goes(serve, workplace, monkeypatch):
    site = serve(6)
    monkeypatch.setattr(here, "MIRROR", mounted(workplace / "drive"))
    monkeypatch.setattr(ingest_module, "SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(ingest_module, "sync_soon", sync.sync)  # waits, where a walk would go on
    (workplace / "drive").mkdir()
    run = Run("art")
    offered = ingest(config(), run, list_items(config(), run))
    for _ in range(4):
        next(offered)
    shutil.rmtree(run.folder)  # the machine is lost
    assert "files restored" in sync.restore(run) and len(stems(run)) >= 3
    assert_a_rerun_completes(site)


def test_a_cursor_that_cannot_be_read_says_what_to_do(serve):
    serve(4)
    run, _, _ = walk()
    run.cursor.write_text("{")
    with pytest.raises(RunError, match="cursor.json cannot be read: delete it"):
        walk()


def test_every_line_is_the_runs_own_and_instaloader_prints_nothing(serve, capfd):
    site = serve(8, page=3)
    site.fail("post", "429", after=4)
    run, _, _ = walk()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert {path.name for path in run.folder.iterdir()} == {
        "config",
        "images",
        "posts.jsonl",
        "rejected.jsonl",
        "cursor.json",
        "seconds.json",
    }
    assert len(lines(run.posts)) == len(list(run.images.iterdir()))
