import pytest
from PIL import Image

from helpers.config import ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Post, Rejection, read_rows
from helpers.core.run import IMAGE_NAME, Run
from helpers.dataset.takedown import remove
from helpers.demo.flaws import FLAWS
from helpers.scrape.ingest import find, take, verify_images
from tests.conftest import lines, photograph


def scrape(folder, name="mine", **more):
    config, run = ScrapeConfig(run=name, source="folder", folder=str(folder), **more), Run(name)
    taken = list(take(config, run, find(config, run)))
    return run, taken


def test_a_folder_comes_in_byte_for_byte_with_its_captions(workplace, pictures):
    run, _ = scrape(pictures, permission="own work")
    posts = read_rows(run.posts, Post)
    assert len(posts) == 12 and {post.permission for post in posts} == {"own work"}
    assert run.image(posts[3].file_name).read_bytes() == (pictures / "Holiday 03.JPG").read_bytes()
    assert run.sidecar(posts[3].file_name).read_text() == "a picture of place number 3"
    assert "12 images of 12 posts" in verify_images(run)


def test_width_and_height_are_what_one_sees(workplace, pictures):
    run, _ = scrape(pictures)
    sizes = {p.shortcode: (p.width_px, p.height_px) for p in read_rows(run.posts, Post)}
    assert sizes["Holiday-00"] == (90, 120) and sizes["Holiday-01"] == (120, 90)


def test_a_rerun_takes_only_what_is_new(workplace, pictures):
    run, _ = scrape(pictures)
    before = run.image("Holiday-01_1.jpg").stat().st_mtime_ns
    photograph(pictures / "new.png", 99)
    scrape(pictures)
    assert len(lines(run.posts)) == 13
    assert run.image("Holiday-01_1.jpg").stat().st_mtime_ns == before


def test_an_image_that_was_lost_comes_back(workplace, pictures):
    run, _ = scrape(pictures)
    run.image("Holiday-01_1.jpg").unlink()
    with pytest.raises(RunError, match="Holiday-01_1.jpg is missing"):
        verify_images(run)
    scrape(pictures)
    assert "12 images" in verify_images(run)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("text.jpg", b"hello", "is no JPEG, PNG, WEBP, HEIC"),
        ("empty.png", b"", "is no JPEG, PNG, WEBP, HEIC"),
        ("cut.jpg", None, "does not decode"),
    ],
)
def test_what_does_not_decode_is_told_and_the_rest_comes_in(
    workplace, pictures, name, content, reason
):
    if content is None:
        content = (pictures / "Holiday 02.JPG").read_bytes()[:-400]
    (pictures / name).write_bytes(content)
    run, taken = scrape(pictures)
    (row,) = read_rows(run.rejected, Rejection)
    assert row.file_name == name and reason in row.reason
    assert f"12 images of 12 posts in {run.images}, 1 left out: {name}" in verify_images(run)
    assert (pictures / name).exists() and len(taken) == 13


def test_a_bitmap_and_a_bomb_are_left_out(workplace, tmp_path):
    folder = tmp_path / "odd"
    photograph(folder / "fine.jpg", 1)
    Image.new("RGB", (20, 20)).save(folder / "old.bmp")
    Image.new("1", (2000, 1200)).save(folder / "huge.png")
    run, _ = scrape(folder, max_image_mpx=1)
    reasons = {row.file_name: row.reason for row in read_rows(run.rejected, Rejection)}
    assert "no JPEG" in reasons["old.bmp"] and "more than 1 megapixels" in reasons["huge.png"]


def test_names_are_ours_and_never_collide(workplace, tmp_path):
    folder = tmp_path / "names"
    for name in (
        "a b.jpg",
        "a-b.jpg",
        "A B.png",
        "日本.jpg",
        "sub/a b.jpg",
        ".hidden.jpg",
        "x" * 200 + ".jpg",
    ):
        photograph(folder / name, len(name))
    run, taken = scrape(folder)
    names = [item.post.file_name for item in taken if item.post]
    assert len(set(map(str.lower, names))) == len(names) == 6  # the hidden one is passed over
    assert all(IMAGE_NAME.fullmatch(name) for name in names)


def test_instagram_names_keep_their_posts_and_plain_numbered_ones_stand_alone(workplace, tmp_path):
    folder = tmp_path / "mixed"
    for name in (
        "C1a2B3c4D5e_1.jpg",
        "C1a2B3c4D5e_2.jpg",
        "watercolour_1.jpg",
        "watercolour_2.jpg",
    ):
        photograph(folder / name, len(name))
    run, _ = scrape(folder)
    posts = {(post.shortcode, post.index) for post in read_rows(run.posts, Post)}
    assert {("C1a2B3c4D5e", 1), ("C1a2B3c4D5e", 2)} <= posts
    assert len({shortcode for shortcode, _ in posts}) == 3


@pytest.mark.parametrize("make", ["missing", "empty", "only-captions"])
def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_written(
    workplace, tmp_path, make
):
    folder = tmp_path / "input"
    words = {
        "missing": "is not there",
        "empty": "holds no image",
        "only-captions": "holds no image",
    }[make]
    if make != "missing":
        folder.mkdir()
    if make == "only-captions":
        (folder / "cat.txt").write_text("a cat")
    with pytest.raises(RunError, match=words):
        scrape(folder)
    assert not (workplace / "runs").exists()


def test_another_source_wants_another_run(workplace, pictures, tmp_path):
    scrape(pictures)
    photograph(tmp_path / "other/a.jpg", 1)
    with pytest.raises(RunError, match="give this source a run name of its own"):
        scrape(tmp_path / "other")


def test_nothing_but_rubbish_is_one_line(workplace, tmp_path):
    folder = tmp_path / "rubbish"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no")
    run, _ = scrape(folder)
    with pytest.raises(RunError, match="none of 1 files is an image; a.jpg is no JPEG"):
        verify_images(run)


def test_the_demo_draws_carousels_from_a_seed(workplace):
    config, run = ScrapeConfig(run="d", demo_posts=4), Run("d")
    found = find(config, run).items
    first = [item.load() for item in found[:2]]
    assert [item.load() for item in find(config, run).items[:2]] == first
    scenes = [item for item in found if item.source_id.startswith("scene ")]
    assert len({item.shortcode for item in scenes}) == 4 and all(item.caption for item in scenes)
    assert found[: len(scenes)] == scenes and len(found) == len(scenes) + len(FLAWS) + 1


def test_a_post_that_was_taken_down_does_not_come_in_again(workplace, pictures):
    run, _ = scrape(pictures)
    assert remove(run, "Holiday-01").files
    scrape(pictures)
    assert not run.image("Holiday-01_1.jpg").exists() and "11 images" in verify_images(run)
    (row,) = read_rows(run.rejected, Rejection)
    assert row.reason == "was taken down"
