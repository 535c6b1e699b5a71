"""A folder as people have it: companions, odd names, files replaced and moved, runs of older versions."""

import json
import os
import shutil
import time
import unicodedata

import pytest
from PIL import Image

from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.errors import RunError
from helpers.core.records import Caption, Post, Rejection, latest, present, read_rows, rewrite
from helpers.core.run import Run
from helpers.dataset.curate import curate, take_back
from helpers.dataset.takedown import remove
from helpers.figures.pictures import months
from helpers.scrape.ingest import ingest, left_out, list_items, verify_images
from tests.conftest import lines, make_dataset, photograph

OF_THIS_VERSION = ("permission_changed", "source_name", "source_id", "gone")


def scrape(folder, **more):
    config, run = ScrapeConfig(run="mine", source="folder", folder=str(folder), **more), Run("mine")
    offered = list_items(config, run)
    list(ingest(config, run, offered))
    return run, offered


def captioned(run):
    """What 02 makes of it: the words of each image, by the content that they were written for."""
    config = CaptionConfig(run=run.name)
    list(caption_images(config, run, pending(config, run)))
    rows = latest(read_rows(run.captions, Caption))
    return {post.sha256: rows[post.file_name].caption for post in present(run.posts)}


def as_an_older_version_wrote_it(run):
    rows = [
        {name: value for name, value in row.items() if name not in OF_THIS_VERSION}
        for row in lines(run.posts)
    ]
    run.posts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_says_that_its_files_have_no_dates(workplace, pictures):
    told = "a folder's files have no dates: since and until do nothing"
    assert told not in scrape(pictures)[1].words
    run, offered = scrape(pictures, until="2001-01-01")
    assert offered.total == 12 and offered.words.count(told) == 1
    dates = [post.taken_at for post in present(run.posts)]
    assert months(dates) == "no post has a date"
    assert isinstance(months([*dates, "2024-01-31T10:00:00"]), Image.Image)


def test_an_image_and_words_that_were_replaced_are_taken_up_together(workplace, pictures):
    run, _ = scrape(pictures)
    before = captioned(run)
    photograph(pictures / "Holiday 03.JPG", 77)
    (pictures / "Holiday 03.txt").write_text("another place")
    run, offered = scrape(pictures)
    after = captioned(run)
    assert offered.news.startswith("0 new, 11 as before, 1 changed (Holiday 03.JPG)")
    assert "1 no longer in the source (Holiday 03.JPG)" in offered.news
    (new,) = after.keys() - before.keys()
    assert after[new] == "another place" and len(after) == 12
    assert all(after[content] == before[content] for content in before.keys() & after.keys())
    assert "12 images of 12 posts" in verify_images(run)
    assert "1 more are no longer in the source" in verify_images(run)


def test_what_is_gone_is_told_left_out_of_the_dataset_and_back_with_its_words(workplace, pictures):
    run, _ = scrape(pictures)
    captioned(run)
    kept_aside = shutil.move(pictures / "Holiday 05.JPG", workplace / "aside.JPG")
    (pictures / "Holiday 05.txt").unlink()
    run, offered = scrape(pictures)
    assert "1 no longer in the source (Holiday 05.JPG)" in offered.news
    assert len(pending(CaptionConfig(run="mine"), run)) == 0  # nor is it paid for
    settings = DatasetConfig(run="mine", min_side_px=32)
    kept, out = curate(settings, run)
    assert len(kept) == 11 and out["reason"].item().startswith("is no longer in the source")
    take_back(run, "Holiday-05_1.jpg")
    assert len(curate(settings, run)[0]) == 12
    run.taken_back.unlink()
    shutil.move(kept_aside, pictures / "found again.jpg")
    run, offered = scrape(pictures)
    assert offered.news == "0 new, 12 as before"
    kept, _ = curate(settings, run)
    words = dict(zip(kept["file_name"], kept["caption"], strict=True))
    assert words["Holiday-05_1.jpg"] == "a picture of place number 5" and len(words) == 12


def test_a_copy_beside_a_picture_takes_neither_its_name_nor_its_words(workplace, pictures):
    run, _ = scrape(pictures)
    shutil.copy(pictures / "Holiday 05.JPG", pictures / "A copy of 05.jpg")
    (pictures / "A copy of 05.txt").write_text("a copy")
    run, offered = scrape(pictures)
    assert offered.news == "1 new, 12 as before"
    assert run.sidecar("Holiday-05_1.jpg").read_text() == "a picture of place number 5"
    assert run.sidecar("A-copy-of-05_1.jpg").read_text() == "a copy"
    (pictures / "A copy of 05.jpg").unlink()
    (pictures / "A copy of 05.txt").unlink()
    run, _ = scrape(pictures)
    assert "12 images of 12 posts" in verify_images(run)
    assert run.sidecar("Holiday-05_1.jpg").read_text() == "a picture of place number 5"


def test_files_that_are_as_they_were_are_not_read_again(workplace, pictures):
    run, _ = scrape(pictures)
    before = run.posts.read_bytes()
    config = ScrapeConfig(run="mine", source="folder", folder=str(pictures))
    offered = list_items(config, run)
    for path in pictures.glob("*.JPG"):
        path.unlink()  # after the listing: whoever reads now fails
    assert all(item.post for item in ingest(config, run, offered))
    assert run.posts.read_bytes() == before


def test_a_touched_or_copied_folder_keeps_every_name(workplace, pictures, tmp_path):
    run, _ = scrape(pictures)
    before = {post.sha256: post.file_name for post in present(run.posts)}
    moved = tmp_path / "elsewhere"
    shutil.copytree(pictures, moved)
    shutil.rmtree(pictures)
    run, offered = scrape(moved)
    assert offered.news == "0 new, 12 as before"
    assert {post.sha256: post.file_name for post in present(run.posts)} == before


def test_a_run_of_an_older_version_keeps_its_names_and_takes_what_is_new(workplace, pictures):
    run, _ = scrape(pictures)
    as_an_older_version_wrote_it(run)
    before = {post.sha256: post.file_name for post in read_rows(run.posts, Post)}
    photograph(pictures / "Holiday 00b.JPG", 88)
    (pictures / "Holiday 07.JPG").rename(pictures / "B.JPG")
    (pictures / "Holiday 07.txt").rename(pictures / "B.txt")
    run, offered = scrape(pictures)
    after = {post.sha256: post.file_name for post in present(run.posts)}
    assert offered.news == "1 new, 12 as before" and before.items() < after.items()
    first = len(lines(run.posts))
    scrape(pictures)
    assert len(lines(run.posts)) == first


def test_a_demo_of_an_older_version_is_not_painted_again(workplace):
    config, run = ScrapeConfig(run="mine", demo_posts=4), Run("mine")
    list(ingest(config, run, list_items(config, run)))
    as_an_older_version_wrote_it(run)
    again = list_items(config, run)
    again.items = [unpaintable(item) for item in again.items if item.source_id != "video"]
    assert all(item.post for item in ingest(config, run, again))


def unpaintable(item):
    from dataclasses import replace

    def load():
        raise AssertionError("was painted")

    return replace(item, load=load)


def test_a_file_that_breaks_is_refused_and_its_picture_stays(workplace, pictures):
    run, _ = scrape(pictures)
    whole = (pictures / "Holiday 02.JPG").read_bytes()
    (pictures / "Holiday 02.JPG").write_bytes(whole[:300])
    run, offered = scrape(pictures)
    assert "no longer" not in offered.news and "12 images" in verify_images(run)
    assert [row.file_name for row in read_rows(run.rejected, Rejection)] == ["Holiday 02.JPG"]
    (pictures / "Holiday 02.JPG").write_bytes(whole)
    run, _ = scrape(pictures)
    assert not left_out(run) and not read_rows(run.rejected, Rejection)


def test_a_limit_of_posts_loses_none_of_those_that_are_there(workplace, pictures):
    run, _ = scrape(pictures)
    (pictures / "Holiday 09.JPG").rename(pictures / "Z.JPG")
    (pictures / "Holiday 09.txt").rename(pictures / "Z.txt")
    run, offered = scrape(pictures, max_posts=3)
    assert "no longer" not in offered.news and len(present(run.posts)) == 12


def test_what_was_taken_down_stays_out_by_any_name(workplace, pictures):
    run = make_dataset("mine", pictures)
    remove(run, "Holiday-05")
    (pictures / "Holiday 05.JPG").rename(pictures / "innocent.jpg")
    (pictures / "Holiday 05.txt").rename(pictures / "innocent.txt")
    run, _ = scrape(pictures)
    assert len(present(run.posts)) == 11
    (row,) = read_rows(run.rejected, Rejection)
    assert (row.file_name, row.reason) == ("innocent.jpg", "was taken down")


def test_companions_of_photographs_are_counted_by_kind_and_no_failed_pictures(workplace, tmp_path):
    folder = tmp_path / "phone"
    for i in range(5):
        photograph(folder / f"IMG_{i}.JPG", i)
        for suffix in (".MOV", ".AAE"):
            (folder / f"IMG_{i}{suffix}").write_bytes(b"no picture")
        (folder / f"IMG_{i}.JPG.supplemental-metadata.json").write_text('{"title": "x"}')
    for name in ("Thumbs.db", ".DS_Store", "._IMG_1.JPG", "desktop.ini", "__MACOSX/IMG_1.JPG"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    run, offered = scrape(folder)
    assert offered.words.startswith("5 files in 5 posts")
    assert "\nbeside them 5 .aae, 5 .json, 5 .mov, 1 .db, 1 .ini" in offered.words
    assert len(present(run.posts)) == 5 and not read_rows(run.rejected, Rejection)


def test_files_that_can_be_no_picture_are_told_by_kind_and_with_what_to_do(workplace, tmp_path):
    folder = tmp_path / "chat"
    photograph(folder / "a.jpg", 1)
    photograph(folder / "b.jpg", 2).rename(folder / "b")
    photograph(folder / "c.jpg", 3).rename(folder / "c.jpg.bak")
    photograph(folder / "d.jpg", 4).rename(folder / "d.jpg.crdownload")
    for name in ("1.opus", "2.opus", "Anna.vcf", "e.zip", ".f.jpg.icloud", "Makefile", "p.kra"):
        (folder / name).write_bytes(b"PK no picture")
    (folder / "html.jpg").write_text("<html>")
    (folder / "old.bmp").write_bytes(b"BM")
    run, offered = scrape(folder)
    assert offered.words == (
        "5 files in 5 posts\nno captions for 5 images\nbeside them 1 .crdownload (it has not "
        "been downloaded yet), 1 .icloud (it has not been downloaded yet), 1 .zip (unpack it), 2 .opus, "
        "1 without a suffix, 1 .kra, 1 .vcf"
    )
    assert {post.source_name for post in present(run.posts)} == {"a.jpg", "b", "c.jpg.bak"}
    assert [row.file_name for row in left_out(run)] == ["html.jpg", "old.bmp"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Instagram.ZIP", "holds no image, but 1 .zip (unpack it): put JPEG, PNG"),
        (".a.heic.icloud", "holds no image, but 1 .icloud (it has not been downloaded yet): put"),
        ("notes.txt", "holds no image: put JPEG, PNG"),
    ],
)
def test_a_folder_without_a_picture_says_what_is_in_it(workplace, tmp_path, name, words):
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(RunError) as caught:
        scrape(tmp_path / "art")
    assert words in str(caught.value) and not (workplace / "runs").exists()


def test_what_was_done_to_a_picture_is_told_as_it_comes_in(workplace, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    page = Image.new("RGB", (90, 120), "red")
    page.save(folder / "A sketchbook.tif", save_all=True, append_images=[page.copy()])
    for name in ("b", "c"):
        Image.new("RGBA", (90, 120), (0, 0, len(name), 9)).save(folder / f"{name}.png")
    photograph(folder / "d.jpg", 1)
    config = ScrapeConfig(run="mine", source="folder", folder=str(folder))
    run = Run("mine")
    offered = list_items(config, run)
    first = next(ingest(config, run, offered))  # as 01's cell of one image does
    assert str(first) == "A sketchbook.tif, 90 x 120 px, saved as A-sketchbook_1.tif"
    list(ingest(config, run, offered))
    assert offered.news == (
        "4 new, 0 as before; only the first of several pages or frames: A sketchbook.tif; "
        "transparent parts put on white: b.png, c.png"
    )
    assert scrape(folder)[1].news == "0 new, 4 as before"


def test_a_picture_that_is_too_large_says_what_to_set(workplace, tmp_path):
    photograph(tmp_path / "art/a.png", 0)
    Image.new("L", (1500, 1000)).save(tmp_path / "art/b.png")
    run, _ = scrape(tmp_path / "art", max_image_mpx=1)
    (row,) = read_rows(run.rejected, Rejection)
    assert row.reason == (
        "1500 x 1000 px is more than 1 megapixels: set max_image_mpx higher in more, or save it smaller"
    )


def test_letters_with_accents_stay_in_a_name(workplace, tmp_path):
    for number, form in enumerate(("NFC", "NFD")):
        name = unicodedata.normalize(form, "Été à la mer 🐚.jpg")
        photograph(tmp_path / f"art/{number}" / name, number)
    run, _ = scrape(tmp_path / "art")
    names = sorted(post.file_name for post in present(run.posts))
    assert names == ["0-Ete-a-la-mer_1.jpg", "1-Ete-a-la-mer_1.jpg"]


def test_a_name_that_is_no_text_comes_in_and_is_told_apart(workplace, tmp_path):
    folder = tmp_path / "old disk"
    photograph(folder / "a.png", 0)
    for number, name in enumerate((b"caf\xe9.png", b"caf\xe8.png", b"\xff\xfe.png"), 1):
        made = photograph(folder / "made.png", number)
        made.rename(os.fsdecode(os.fsencode(folder) + b"/" + name))
    (folder / os.fsdecode(b"bad\xe9.png")).write_bytes(b"no picture")
    run, _ = scrape(folder)
    assert {post.source_name for post in present(run.posts)} == {
        "a.png", r"caf\xe9.png", r"caf\xe8.png", r"\xff\xfe.png"
    }  # fmt: skip
    assert [row.file_name for row in read_rows(run.rejected, Rejection)] == [r"bad\xe9.png"]
    assert r"bad\xe9.png" in verify_images(run)
    before = run.posts.read_bytes()
    scrape(folder)
    assert run.posts.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("drawing 02.png", "is a file: give the path of its folder"),
        ("mine.zip", "is a ZIP: unpack it, or set source to 'export' if it is Instagram's"),
        ("nothing", "is not there: give the path of a folder with your images"),
        ("nothing ", "begins or ends with a space or a quotation mark: take it off"),
    ],
)
def test_a_path_that_is_no_folder_says_what_it_is(workplace, tmp_path, name, words):
    if name.strip() != "nothing":
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RunError) as caught:
        scrape(tmp_path / name)
    assert words in str(caught.value) and not (workplace / "runs").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_takes_nothing_out_of_the_run(workplace, pictures):
    photograph(pictures / "inner/a.jpg", 50)
    scrape(pictures)
    (pictures / "inner").chmod(0)
    try:
        run, offered = scrape(pictures)
    finally:
        (pictures / "inner").chmod(0o755)
    assert "1 paths cannot be read, such as" in offered.words
    assert "no longer" not in offered.news and len(present(run.posts)) == 13


def test_three_pictures_are_told_that_four_are_needed(workplace, tmp_path):
    for i in range(3):
        photograph(tmp_path / f"few/{i}.jpg", i).with_suffix(".txt").write_text(f"thing {i}")
    with pytest.raises(RunError) as caught:
        make_dataset("few", tmp_path / "few")
    assert str(caught.value) == (
        "3 of 3 images are left, and training needs 4: add images and run 01 to 03 again"
    )


def test_thousands_of_pairs_are_listed_in_a_second(workplace, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(4_000):
        (folder / f"{i}.jpg").write_bytes(b"not read")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    config = ScrapeConfig(run="mine", source="folder", folder=str(folder))
    began = time.process_time()
    assert list_items(config, Run("mine")).total == 4_000
    assert time.process_time() - began < 2


def test_thousands_of_refusals_are_kept_in_linear_time(workplace, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(1_000):
        (folder / f"{i}.jpg").write_bytes(b"no picture")
    began = time.process_time()
    run, _ = scrape(folder)
    assert len(read_rows(run.rejected, Rejection)) == 1_000
    assert time.process_time() - began < 5


def test_rewriting_what_was_refused_leaves_the_rows_of_03(workplace, pictures):
    run, _ = scrape(pictures)
    rewrite(run.rejected, lambda row: True, [Rejection("Holiday-01_1.jpg", "dataset", "too dark")])
    scrape(pictures)
    assert [row.stage for row in read_rows(run.rejected, Rejection)] == ["dataset"]


def test_a_picture_of_a_post_that_lost_one_before_it_keeps_its_name(workplace):
    """Instagram numbers each slide; where the first is taken out, the others move up."""
    from functools import partial

    from helpers.scrape.items import Source, SourceItem
    from tests.loopback_instagram import picture

    config = ScrapeConfig(run="mine", source="instagram", posts="C1a2B3c4D5e")
    run = Run("mine")

    def walk(numbers, width_px):  # each time as another rendition, so that no content tells
        items = [
            SourceItem("x", "C1a2B3c4D5e", i, partial(picture, n, width_px), source_id=f"C1 {n}")
            for i, n in enumerate(numbers, 1)
        ]
        list(ingest(config, run, Source("", items, config=config)))
        return {post.source_id[3:]: post.file_name for post in present(run.posts)}

    first = walk("abc", 48)
    assert walk("bcd", 32) == first | {"d": "C1a2B3c4D5e_4.jpg"}


def rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def move_below(folder):
    (folder / "best of").mkdir()
    (folder / "Holiday 04.JPG").rename(folder / "best of/Holiday 04.JPG")


def link(folder):
    (folder / "Holiday 04.JPG").rename(folder / ".original.JPG")
    (folder / "Holiday 04.JPG").symlink_to(folder / ".original.JPG")


def rewrite_in_place(folder):
    content = (folder / "Holiday 04.JPG").read_bytes()
    (folder / "Holiday 04.JPG").write_bytes(content)


def swap_at_the_same_second(folder):
    """As a program does that keeps times: names change places, sizes are equal, times too."""
    a, b, aside = folder / "same a.png", folder / "same b.png", folder / "aside.png"
    for old, new in ((a, aside), (b, a), (aside, b)):
        old.rename(new)
        os.utime(new, ns=(10**18, 10**18))


@pytest.mark.parametrize(
    "change",
    [
        rename("Holiday 04.JPG", "HOLIDAY 04.jpg"),
        rename("Holiday 04.JPG", "Holiday 04.jpeg"),
        rename("Holiday 04.JPG", "Fe\u0301rias.JPG"),
        rename("Holiday 04.JPG", "C1a2B3c4D5e_1.jpg"),
        rename("Holiday 04.JPG", "000.JPG"),
        move_below,
        link,
        rewrite_in_place,
        swap_at_the_same_second,
    ],
    ids=range(9),
)
def test_no_name_and_no_caption_moves_whatever_a_file_is_called(workplace, pictures, change):
    for name, colour in (("same a.png", 10), ("same b.png", 200)):
        Image.new("L", (64, 64), colour).save(pictures / name)
        os.utime(pictures / name, ns=(10**18, 10**18))
    sizes = {(pictures / f"same {name}.png").stat().st_size for name in "ab"}
    assert len(sizes) == 1  # so that neither size nor time tells them apart
    run, _ = scrape(pictures)
    before = {post.sha256: post.file_name for post in present(run.posts)}
    words = captioned(run)
    change(pictures)
    for text in pictures.glob("*.txt"):
        if not list(pictures.glob(f"{text.stem}.[jJ]*")):
            text.unlink()
    run, offered = scrape(pictures)
    after = {post.sha256: post.file_name for post in present(run.posts)}
    assert all(after[content] == name for content, name in before.items())
    assert captioned(run) == words and "no longer" not in offered.news


def test_a_folder_that_is_emptied_takes_nothing_out_of_the_run(workplace, pictures):
    run, _ = scrape(pictures)
    shutil.rmtree(pictures)
    pictures.mkdir()
    with pytest.raises(RunError, match="holds no image"):
        scrape(pictures)
    assert len(present(run.posts)) == 12
