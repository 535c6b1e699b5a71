import csv
import hashlib

import datasets
import pandas as pd
import pytest
from PIL import Image

from helpers.config import DatasetConfig
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.split import split
from helpers.errors import RunError
from helpers.records import Caption, Rejection, append_row, read_metadata, read_rows
from helpers.run import Run
from helpers.store import folder_hash
from tests.conftest import make_dataset, photograph


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


def test_about_the_asked_share_is_held_out():
    images = carousels(400)
    share = [(split(images, 0.15, seed) == "validation").mean() for seed in range(20)]
    assert 0.13 < sum(share) / 20 < 0.17


def test_what_is_held_out_stays_so_as_the_set_grows():
    small = carousels(60)
    before = set(small["file_name"][split(small, 0.15, 1) == "validation"])
    large = carousels(120)
    assert before <= set(large["file_name"][split(large, 0.15, 1) == "validation"])


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


def test_orientation_is_applied_and_plain_files_stay_as_they_are(dataset):
    files = {
        path.name: path
        for path in (*dataset.split_images("train"), *dataset.split_images("validation"))
    }
    assert Image.open(files["Holiday-00_1.png"]).size == (90, 120)
    assert files["Holiday-01_1.jpg"].read_bytes() == dataset.image("Holiday-01_1.jpg").read_bytes()


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


def test_a_caption_for_an_image_that_is_not_there_is_refused(dataset):
    append_row(dataset.captions, Caption("ghost_1.jpg", "boo", "ok", "sidecar"))
    with pytest.raises(
        RunError, match="captions ghost_1.jpg, which is not in .*take that line out"
    ):
        curate(DatasetConfig(run="pictures"), dataset)


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
    kept, left_out = curate(DatasetConfig(run="pictures", min_side_px=32), dataset)
    dataset.image("Holiday-02_1.jpg").write_bytes(b"broken in between")
    with pytest.raises(OSError):
        build(DatasetConfig(run="pictures"), dataset, kept.assign(split="train"), left_out)
    assert folder_hash(dataset.dataset) == before and "train" in verify_dataset(dataset)


def test_a_file_that_was_touched_afterwards_is_named(dataset):
    path = dataset.split_images("train")[0]
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(
        RunError, match=f"{path.name} is not what manifest.json says: run 03_dataset again"
    ):
        verify_dataset(dataset)


def test_metadata_that_leads_out_of_its_folder_is_refused(dataset):
    path = dataset.split_metadata("train")
    with path.open("a", newline="") as file:
        csv.writer(file).writerow(["../../secret.png", "words"])
    with pytest.raises(RunError, match="not in its folder"):
        read_metadata(path)


def test_the_card_says_what_is_in_it(dataset):
    card = (dataset.dataset / "README.md").read_text()
    assert "private study" in card and "12 images" in card and "by sidecar" in card
    assert (
        hashlib.sha256(card.encode()).hexdigest() in (dataset.dataset / "manifest.json").read_text()
    )
