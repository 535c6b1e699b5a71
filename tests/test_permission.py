"""A permission can be corrected, holds for what it was given for, and never spreads to another's posts."""

import json
from datetime import date

import pytest

from helpers.config import DatasetConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Post, Rejection, latest, present, read_rows
from helpers.core.run import Run
from helpers.dataset.push_dataset import publish
from helpers.scrape.ingest import ingest, list_items
from tests.conftest import lines, make_dataset, photograph
from tests.loopback_instagram import FIRST_DAY, FakePost, stems, walk


def scrape(folder, permission):
    run = Run("mine")
    config = ScrapeConfig(run="mine", source="folder", folder=str(folder), permission=permission)
    offered = list_items(config, run)
    list(ingest(config, run, offered))
    return run, offered


def test_a_permission_that_is_corrected_holds_for_all_images_from_that_day_on(workplace, pictures):
    scrape(pictures, "own work")
    photograph(pictures / "new.jpg", 99)
    (pictures / "Holiday 03.JPG").unlink()
    (pictures / "Holiday 03.txt").unlink()
    run, offered = scrape(pictures, "private study")
    today = date.today().isoformat()
    rows = latest(read_rows(run.posts, Post))
    assert len(rows) == 13 and {row.permission for row in rows.values()} == {"private study"}
    dates = {name: row.permission_changed for name, row in rows.items()}
    assert dates.pop("new_1.jpg") == "" and set(dates.values()) == {today}
    assert f"the permission of 12 images is 'private study' from {today} on" in offered.news
    before = run.posts.read_bytes()
    _, offered = scrape(pictures, "private study")
    assert run.posts.read_bytes() == before and "permission" not in offered.news


def test_looking_at_one_image_corrects_all_and_tells_it_at_the_end(workplace, pictures):
    scrape(pictures, "own work")
    run = Run("mine")
    config = ScrapeConfig(run="mine", source="folder", folder=str(pictures))
    offered = list_items(config, run)
    next(ingest(config, run, offered))
    assert {post.permission for post in present(run.posts)} == {"private study"}
    list(ingest(config, run, offered))
    assert "the permission of 12 images is 'private study'" in offered.news


def test_a_public_push_keeps_to_the_permission_as_it_was_corrected(workplace, pictures):
    scrape(pictures, "own work")
    run = make_dataset_again(pictures, "own work")
    scrape(pictures, "private study")
    public = DatasetConfig(run="mine", push_to="me/art", private=False)
    with pytest.raises(RunError, match="of 12 images 12 are for 'private study'"):
        publish(public, run)


def make_dataset_again(pictures, permission):
    run = make_dataset("mine", pictures)
    scrape(pictures, permission)
    from helpers.dataset.build import build
    from helpers.dataset.curate import curate
    from helpers.dataset.split import split

    config = DatasetConfig(run="mine", min_side_px=32)
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.25, 0)), left_out)
    return run


# coauthored posts


def timeline(count=6, **of_the_third):
    posts = [FakePost(f"C1a2B3c4D{i}e", FIRST_DAY - i * 86_400, likes=i) for i in range(count)]
    posts[2] = FakePost("C1a2B3c4D2e", FIRST_DAY - 2 * 86_400, ("image", "image"), **of_the_third)
    return posts


@pytest.fixture(params=["anonymous", "logged in"])
def who(request):
    if request.param == "logged in":
        request.getfixturevalue("logged_in")


def test_anothers_post_in_the_timeline_is_left_out_and_told(serve, who):
    site = serve(timeline(owner="friend"))
    run, source, taken = walk(permission="own work")
    assert not source.stopped and len(stems(run)) == 5
    assert {post.account for post in present(run.posts)} == {"artist"}
    (row,) = read_rows(run.rejected, Rejection)
    assert row.file_name == "C1a2B3c4D2e_1"
    assert row.reason == "is a post of @friend: coauthored=True takes it"
    assert source.news == "5 new, 0 as before"
    asked = len(site.log)
    _, source, _ = walk(permission="own work")
    assert source.news == "0 new, 5 as before"
    assert not [about for kind, about in site.log[asked:] if kind in ("post", "image")]


def test_anothers_post_that_is_asked_for_never_gets_the_walkers_permission(serve, who):
    site = serve(timeline(owner="friend"))
    walk(permission="own work")
    run, source, _ = walk(permission="own work", coauthored=True)
    assert not source.stopped and sorted(stems(run)) == sorted(site.images())
    said = {(post.account, post.permission) for post in present(run.posts)}
    assert said == {("artist", "own work"), ("friend", "private study")}
    run, _, _ = walk(permission="permission of the artist", coauthored=True)
    said = {(post.account, post.permission) for post in present(run.posts)}
    assert said == {("artist", "permission of the artist"), ("friend", "private study")}


def test_anothers_post_by_its_shortcode_is_asked_for(serve, who):
    serve(timeline(owner="friend"))
    run, _, _ = walk(posts="C1a2B3c4D2e, C1a2B3c4D3e", permission="own work")
    said = {(post.account, post.permission) for post in present(run.posts)}
    assert said == {("artist", "own work"), ("friend", "private study")}


def test_anothers_post_does_not_count_to_a_limit_of_posts(serve, who):
    serve(timeline(owner="friend"))
    run, _, _ = walk(max_posts=3)
    assert stems(run) == ["C1a2B3c4D0e_1", "C1a2B3c4D1e_1", "C1a2B3c4D3e_1"]


def test_an_older_version_gave_anothers_post_a_permission_which_it_loses(serve, who):
    serve(timeline(owner="friend"))
    run, _, _ = walk(permission="own work", coauthored=True)
    rows = [row | {"permission": "own work"} for row in lines(run.posts)]
    run.posts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, _, _ = walk(permission="own work")
    said = {(post.account, post.permission) for post in present(run.posts)}
    assert said == {("artist", "own work"), ("friend", "private study")}


# what is not needed may be missing


@pytest.mark.parametrize(
    "lacks",
    [
        ("like_count",),
        ("has_liked",),
        ("comment_count",),
        ("caption",),
        ("taken_at",),
        ("pk",),
        ("media_type",),
        ("user",),
        ("like_count", "has_liked", "taken_at", "user", "caption", "media_type", "pk"),
    ],
)
def test_what_is_not_needed_may_be_missing_from_an_answer(serve, logged_in, lacks):
    posts = timeline()
    for post in posts[1:5]:
        post.lacks = lacks
    site = serve(posts)
    run, source, _ = walk(since="2020-01-01")
    assert not source.stopped and stems(run) == site.images()
    likes = {post.likes for post in present(run.posts)}
    assert likes == ({0, 5, None} if "like_count" in lacks else {0, 1, 3, 4, 5})
