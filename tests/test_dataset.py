import csv
import hashlib
import random
import re
from dataclasses import replace

import datasets
import pandas as pd
import pytest
import yaml
from PIL import Image

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, folder_hash, write_manifest
from helpers.core.records import (
    Caption,
    Post,
    Rejection,
    append_row,
    read_metadata,
    read_rows,
    rewrite,
)
from helpers.core.run import Run
from helpers.dataset.build import build, held_out, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.dataset_card import card_words
from helpers.dataset.dataset_files import content_hash, read_records
from helpers.dataset.join import clean_caption, without_image
from helpers.dataset.split import balance, meaning, split
from helpers.figures.pictures import open_rgb
from tests.conftest import make_dataset, photograph
from tests.kills import kills_at_every_operation


def rebuild(run, seed=0, share=0.25, before=(), **settings):
    config = DatasetConfig(
        run=run.name, min_side_px=32, validation_share=share, seed=seed, **settings
    )
    kept, left_out = curate(config, run)
    held = held_out(config, run) if before is None else before
    build(config, run, kept.assign(split=split(kept, share, seed, held)), left_out)


def carousels(posts=100, pictures=3):
    names = [(f"post{p}", f"post{p}_{i}.jpg") for p in range(posts) for i in range(pictures)]
    return pd.DataFrame(names, columns=["shortcode", "file_name"])


def test_a_post_is_on_one_side_over_100_seeds():
    images = carousels()
    for seed in range(100):
        sides = (
            images.assign(split=split(images, 0.15, seed)).groupby("shortcode")["split"].nunique()
        )
        assert (sides == 1).all()


def test_posts_and_clusters_are_on_one_side_over_100_seeds():
    """Posts that share a copy go together, also by way of a third."""
    for seed in range(100):
        rng = random.Random(seed)
        images = carousels(60, 4)
        clusters = [f"c{rng.randrange(400)}" for _ in range(len(images))]
        images = images.assign(cluster=clusters)
        sides = images.assign(split=split(images, 0.15, seed))
        assert (sides.groupby("shortcode")["split"].nunique() == 1).all()
        assert (sides.groupby("cluster")["split"].nunique() == 1).all()
        assert set(sides["split"]) == {"train", "validation"}
        assert (sides["split"] == "validation").mean() <= 0.5


def test_about_the_asked_share_is_held_out():
    images = carousels(400)
    share = [(split(images, 0.15, seed) == "validation").mean() for seed in range(20)]
    assert 0.13 < sum(share) / 20 < 0.17


def test_what_is_held_out_stays_so_as_the_set_grows():
    small = carousels(60)
    before = set(small["file_name"][split(small, 0.15, 1) == "validation"])
    large = carousels(120)
    assert before <= set(large["file_name"][split(large, 0.15, 1) == "validation"])


def test_what_was_held_out_stays_so_whatever_is_added():
    """Also where few images had to be topped up, and where a new copy ties two sides together."""
    for seed in range(100):
        rng, held = random.Random(seed), set()
        images = carousels(40, 3).sample(frac=1, random_state=seed).reset_index(drop=True)
        images["cluster"] = [f"c{rng.randrange(150)}" for _ in range(len(images))]
        for count in (8, 15, 40, 80, 120):
            now = images.head(count)
            sides = split(now, 0.15, seed, held)
            new = set(now["file_name"][sides == "validation"])
            if len(held) <= count // 2 and held <= new:
                held = new
                continue
            tied = set(now["file_name"][split(now, 0.15, seed) == "validation"])
            assert new == tied  # the old ones had become more than half
            held = new


def test_one_large_post_trains_and_the_others_are_held_out():
    images = pd.concat([carousels(1, 50), carousels(3, 1).assign(shortcode=["a", "b", "c"])])
    images = images.assign(file_name=[f"i{i}" for i in range(len(images))]).reset_index(drop=True)
    for seed in range(50):
        sides = images.assign(split=split(images, 0.15, seed))
        assert set(sides[sides["shortcode"] == "post0"]["split"]) == {"train"}
        assert (sides["split"] == "validation").sum() == 3


def test_the_words_say_what_a_small_held_out_set_means():
    def words(posts):
        images = carousels(posts, 1).assign(cluster="c", split="train")
        images.loc[: posts // 5 - 1, "split"] = "validation"
        return meaning(images)

    assert words(20).startswith(
        "4 of 20 images are held out: with fewer than 20 the validation loss"
    )
    assert words(100) == (
        "20 of 100 images are held out: enough to see in 04 whether the model overfits"
    )
    images = carousels(10, 2).assign(cluster=range(20), split=["train"] * 16 + ["validation"] * 4)
    assert balance(images).loc["validation"].to_list() == [4, 2, 4, 0.2]


@pytest.mark.parametrize("count", [4, 5, 8, 20])
def test_small_sets_keep_some_on_both_sides(count):
    for seed in range(50):
        sides = split(carousels(count, 1), 0.1, seed)
        assert (sides == "validation").sum() >= max(1, min(4, count // 4))
        assert (sides == "train").sum() >= 1


def test_a_single_post_is_parted_by_image():
    sides = split(carousels(1, 12), 0.2, 0)
    assert set(sides) == {"train", "validation"}


def test_it_loads_as_everybody_loads_it(dataset, tmp_path):
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(dataset.dataset), cache_dir=str(tmp_path / "cache")
    )
    assert set(loaded) == {"train", "validation"}
    assert sum(map(len, loaded.values())) == 12
    texts = [row["text"] for part in loaded.values() for row in part]
    assert sorted(texts)[0] == "a picture of place number 0 in a mira watercolor style"
    assert "validation images" in verify_dataset(dataset)


def test_orientation_is_applied_and_plain_files_keep_their_compressed_pixels(dataset):
    files = {
        path.name: path
        for path in (*dataset.split_images("train"), *dataset.split_images("validation"))
    }
    assert Image.open(files["Holiday-00_1.png"]).size == (90, 120)
    clean_caption, source = files["Holiday-01_1.jpg"], dataset.image("Holiday-01_1.jpg")
    assert clean_caption.read_bytes()[-500:] == source.read_bytes()[-500:]
    assert open_rgb(clean_caption).tobytes() == open_rgb(source).tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "I;16"])
def test_every_mode_becomes_rgb(workplace, tmp_path, mode):
    folder = tmp_path / "modes"
    for i in range(6):
        suffix = ".jpg" if mode == "CMYK" else ".png"
        colour = Image.new("RGB", (64, 64), (30 * i, 100, 200)).convert(
            "L" if mode == "I;16" else mode
        )
        if mode == "I;16":
            colour = Image.new("I;16", (64, 64), 30000 + i)
        folder.mkdir(exist_ok=True)
        colour.save(folder / f"p{i}{suffix}")
        (folder / f"p{i}.txt").write_text(f"colour {i}")
    run = make_dataset("modes", folder)
    for path in (*run.split_images("train"), *run.split_images("validation")):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            if mode == "I;16":
                assert 110 < image.getpixel((5, 5))[0] < 125  # not clipped to white


def test_the_same_input_gives_the_same_bytes(workplace, pictures):
    first, second = (folder_hash(make_dataset("one", pictures).dataset) for _ in range(2))
    assert first == second


def test_a_card_in_other_words_is_no_other_dataset(workplace, pictures):
    """As an older version wrote it: a training goes on with a dataset that 03 has made again since."""
    run = make_dataset("one", pictures)
    card = run.dataset / "README.md"
    card.write_text(card.read_text() + "Words of another version.\n")
    write_manifest(run.dataset)
    older = folder_hash(run.dataset)
    make_dataset("one", pictures)
    assert folder_hash(run.dataset) == older and verify_dataset(run)
    assert "another version" in card.read_text()
    min(pictures.glob("*.txt")).write_text("another caption\n")
    make_dataset("one", pictures)
    assert folder_hash(run.dataset) != older and "another version" not in card.read_text()


def test_what_is_left_out_has_a_reason(workplace, pictures):
    photograph(pictures / "small.jpg", 1, size=(20, 20)).with_suffix(".txt").write_text("tiny")
    photograph(pictures / "wordless.jpg", 2)
    copy = pictures / "zz copy.jpg"
    copy.write_bytes((pictures / "Holiday 01.JPG").read_bytes())
    copy.with_suffix(".txt").write_text("the same again")
    run = make_dataset("mixed", pictures)
    reasons = {row.file_name: row.reason for row in read_rows(run.rejected, Rejection)}
    assert reasons == {
        "small_1.jpg": "its shorter side of 20 px is below min_side_px 32",
        "wordless_1.jpg": "has no caption",
        "zz-copy_1.jpg": "is the same file as Holiday-01_1.jpg",
    }
    assert run.image("small_1.jpg").is_file()  # nothing is deleted


def test_of_two_equal_files_the_captioned_one_stays(workplace, pictures):
    twin = pictures / "A twin.jpg"  # comes first, and has no words
    twin.write_bytes((pictures / "Holiday 01.JPG").read_bytes())
    run = make_dataset("twins", pictures)
    (row,) = read_rows(run.rejected, Rejection)
    assert (row.file_name, row.reason) == ("A-twin_1.jpg", "has no caption")


def test_no_caption_at_all_is_one_line(workplace, pictures):
    for path in pictures.glob("*.txt"):
        path.unlink()
    with pytest.raises(RunError, match=r"0 of 12 images are left, .*\(12 has no caption\)"):
        make_dataset("wordless", pictures)


def test_a_caption_without_an_image_and_an_image_without_a_caption_are_told_and_stay(dataset):
    append_row(dataset.captions, Caption("ghost_1.jpg", "boo", "ok", "sidecar"))
    append_row(dataset.captions, Caption("../../secret.jpg", "boo", "ok", "sidecar"))
    dataset.image("Holiday-05_1.jpg").unlink()
    kept, left_out = curate(DatasetConfig(run="pictures", min_side_px=32), dataset)
    assert without_image(dataset) == ["ghost_1.jpg", "../../secret.jpg"]
    reasons = {row.file_name: row.reason for row in read_rows(dataset.rejected, Rejection)}
    assert len(kept) == 11 and set(reasons) == {
        "ghost_1.jpg",
        "../../secret.jpg",
        "Holiday-05_1.jpg",
    }
    assert reasons["ghost_1.jpg"].startswith(
        "has a caption but is not in runs/pictures/posts.jsonl"
    )
    assert reasons["Holiday-05_1.jpg"] == "is not in runs/pictures/images: run 01_scrape again"
    assert "ghost_1.jpg" in dataset.captions.read_text()  # nothing is deleted


def test_the_order_of_rows_joins_nothing(dataset):
    """Captions are joined by file name, whatever order their lines have."""
    before = {r.image: r.text for r in read_records(dataset.dataset)}
    lines = dataset.captions.read_text().splitlines(keepends=True)
    dataset.captions.write_text("".join(lines[::-1]))
    rebuild(dataset)
    assert {r.image: r.text for r in read_records(dataset.dataset)} == before
    assert before["Holiday-07_1.jpg"] == "a picture of place number 7 in a mira watercolor style"


def test_too_few_images_say_why(workplace, tmp_path):
    for i in range(3):
        photograph(tmp_path / f"few/{i}.jpg", i).with_suffix(".txt").write_text("a thing")
    with pytest.raises(RunError, match="3 of 3 images are left, and training needs 4"):
        make_dataset("few", tmp_path / "few")


def test_03_before_02_names_the_notebook(workplace, pictures):
    with pytest.raises(RunError, match="run 01_scrape with run='none' first"):
        curate(DatasetConfig(run="none"), Run("none"))


def test_a_failure_while_building_leaves_the_old_dataset(dataset):
    before = folder_hash(dataset.dataset)
    config = DatasetConfig(run="pictures", min_side_px=32)
    kept, left_out = curate(config, dataset)
    dataset.image("Holiday-02_1.jpg").write_bytes(b"broken in between")
    with pytest.raises(OSError):
        build(config, dataset, kept.assign(split="train"), left_out)
    assert folder_hash(dataset.dataset) == before and "train" in verify_dataset(dataset)


def test_a_file_that_was_touched_afterwards_is_named(dataset):
    path = dataset.split_images("train")[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        RunError, match=f"{path.name} is not what manifest.json says: run 03_dataset again"
    ):
        verify_dataset(dataset)


def test_the_split_of_a_run_stays_when_01_brings_more(workplace, pictures):
    run = make_dataset("growing", pictures)
    rebuild(run, before=None)
    before = {r.image for r in read_records(run.dataset) if r.split == "validation"}
    for i in range(30):
        photograph(pictures / f"new {i}.jpg", 100 + i).with_suffix(".txt").write_text(f"new {i}")
    make_more(run, pictures)
    rebuild(run, before=None)
    now = {r.image: r.split for r in read_records(run.dataset)}
    assert len(now) == 42 and {now[name] for name in before} == {"validation"}


def make_more(run, pictures):
    from helpers.caption.ledger import caption_images, pending
    from helpers.config import CaptionConfig, ScrapeConfig
    from helpers.scrape.ingest import ingest, list_items

    scrape = ScrapeConfig(run=run.name, source="folder", folder=str(pictures))
    list(ingest(scrape, run, list_items(scrape, run)))
    caption = CaptionConfig(run=run.name)
    list(caption_images(caption, run, pending(caption, run)))


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.soak)])
def test_a_kill_at_each_file_operation_leaves_the_old_dataset_or_the_new(dataset, step):
    old, kills, hashes = folder_hash(dataset.dataset), 0, set()
    config = DatasetConfig(run="pictures", min_side_px=32, suffix=" in another style")
    kept, left_out = curate(config, dataset)
    kept = kept.assign(split=split(kept, 0.25, 0))

    def act():
        build(config, Run("pictures"), kept, left_out)

    for number in kills_at_every_operation(dataset.folder, act, step):
        here = Run("pictures")  # which puts back what a kill left aside
        assert find_corruption(here.dataset) is None
        hashes.add(folder_hash(here.dataset))
        kills += 1
        if number:
            act()
        assert verify_dataset(here)
        new = folder_hash(here.dataset)
    assert hashes == {old, new} != {old} and kills > 20 / step


def test_settings_that_the_dataset_was_not_made_with_are_told(dataset):
    """A kill between the dataset and its settings."""
    dataset.write_config("dataset", DatasetConfig(run="pictures", suffix=" in another style"))
    with pytest.raises(RunError, match="is not what runs/pictures/dataset was made with: run 03"):
        verify_dataset(dataset)


FORMULAS = (
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n@x", " =1", "==+-@ a", "＝1", "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://x","y")', "\u2028=1", "\x00=1", "-+@=", "\u00a0=1", "＠x", "+\t-2",
)  # fmt: skip


def test_no_cell_of_the_csv_begins_a_formula(workplace, tmp_path):
    folder = tmp_path / "formulas"
    for i, text in enumerate((*FORMULAS, "an honest = sign", 'a "quoted", <b>line</b>')):
        photograph(folder / f"p{i}.jpg", i).with_suffix(".txt").write_text(text, newline="")
    run = make_dataset("formulas", folder)
    post = replace(read_rows(run.posts, Post)[0], file_name="-1a2B3c4D5e_1.jpg", sha256="another")
    append_row(run.posts, post)
    photograph(run.image("-1a2B3c4D5e_1.jpg"), 99)
    for i, text in enumerate(FORMULAS):
        append_row(run.captions, Caption(f"p{i}_1.jpg", text, "edited", "person"))
    append_row(run.captions, Caption("-1a2B3c4D5e_1.jpg", "a cat", "ok", "sidecar"))
    rebuild(run, max_hash_bits=0)
    cells = []
    for side in ("train", "validation"):
        with run.split_metadata(side).open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["file_name", "text"]
        cells += [cell for row in rows for cell in row]
    assert len(cells) > 30 and not [c for c in cells if c[:1] in set("=+-@＝＋－＠\t\r\n ")]
    assert "_-1a2B3c4D5e_1.jpg" in cells and "an honest = sign in a mira watercolor style" in cells
    assert verify_dataset(run)


def test_words_stay_as_they_are_but_for_what_is_no_word():
    assert clean_caption("a cat - on a hill = 2 @ night") == "a cat - on a hill = 2 @ night"
    assert clean_caption("- a cat\n on\x00 a\ud800 hill ") == "a cat on a hill"
    assert clean_caption("=+-@") == ""


def test_the_card_shows_words_of_others_as_words(workplace, pictures):
    evil = "<script>alert(1)</script> | [x](javascript:1) `a` ![i](http://x) *b* # c\n---\nlicense: mit"
    run = make_dataset("evil", pictures)
    posts = [replace(post, account=evil, taken_at=evil) for post in read_rows(run.posts, Post)]
    rewrite(run.posts, lambda row: False, posts)
    rows = [replace(row, captioner=evil, model="<b>") for row in read_rows(run.captions, Caption)]
    rewrite(run.captions, lambda row: False, rows)
    rebuild(run, suffix=" <i>in</i> `a` | style")
    card = (run.dataset / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pretty_name"] == "evil"
    assert card.count("\n---\n") == 1 and "license" not in card.split("---")[1]
    html = card.split("---\n", 2)[2]
    assert not re.search(r"<(?!/?code>)", html) and "](j" not in html and "![i" not in html
    table = [line for line in html.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 3 for line in table)


def test_a_contact_sheet_is_made_only_where_every_image_may_be_shown(workplace, pictures):
    run = make_dataset("shown", pictures)
    sheet, card = run.dataset / "contact_sheet.jpg", run.dataset / "README.md"
    assert not sheet.exists() and "contact_sheet" not in card.read_text()
    posts = [replace(post, permission="own work") for post in read_rows(run.posts, Post)]
    rewrite(run.posts, lambda row: False, posts)
    rebuild(run)
    assert sheet.is_file() and "![The images](contact_sheet.jpg)" in card.read_text()
    assert "![" not in card_words(run.dataset) and verify_dataset(run)
    rewrite(
        run.posts, lambda row: False, [replace(posts[0], permission="private study"), *posts[1:]]
    )
    rebuild(run)
    assert not sheet.exists()


def test_metadata_that_leads_out_of_its_folder_is_refused(dataset):
    path = dataset.split_metadata("train")
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(["../../secret.png", "words"])
    with pytest.raises(RunError, match="not in its folder"):
        read_metadata(path)


def test_the_card_says_what_is_in_it(dataset):
    card = (dataset.dataset / "README.md").read_text()
    assert "private study" in card and "12 images" in card and "by sidecar" in card
    assert content_hash(dataset.dataset) in card and "seed 0, by post and cluster" in card
    assert (
        hashlib.sha256(card.encode()).hexdigest() in (dataset.dataset / "manifest.json").read_text()
    )
