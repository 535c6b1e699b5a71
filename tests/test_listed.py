import csv

import pandas as pd
import pytest

from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.run import Run
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import split
from helpers.scrape.ingest import find, take
from tests.conftest import photograph


def scrape(folder, name="seed"):
    config, run = ScrapeConfig(run=name, source="folder", folder=str(folder)), Run(name)
    source = find(config, run)
    print(source.words)
    list(take(config, run, source))
    return run


def texts(run):
    return {path.stem: path.read_text() for path in run.images.glob("*.txt")}


@pytest.mark.parametrize(
    "code", ["C{:02d}bZxYwVu9q", "DAbc{:02d}-_EfG", "POST{:03d}", "B{:02d}xyz_k-9"]
)
def test_the_seeds_metadata_comes_in_with_its_posts(workplace, tmp_path, code):
    """An index column, `prompt` for `text`, and file names SHORTCODE_INDEX.jpg, as pandas wrote them."""
    folder, rows, number = tmp_path / "seed", [], 0
    for post in range(14):
        for index in range(post % 4 + 1):
            number += 1
            name = f"{code.format(post)}_{index}.jpg"
            photograph(folder / name, number)
            rows.append((name, f'picture {number}, "quoted" in a style'))
    pd.DataFrame(rows, columns=["file_name", "prompt"]).to_csv(folder / "metadata.csv")
    run = scrape(folder)
    assert len(texts(run)) == number
    caption = CaptionConfig(run="seed")
    list(caption_images(caption, run, pending(caption, run)))
    config = DatasetConfig(run="seed", suffix="")
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.2, 0)), left_out)
    records = read_records(run.dataset)
    assert len(records) == number and verify_dataset(run)
    assert {r.file_name: r.text for r in records} == dict(rows)
    sides = {}
    for record in records:
        sides.setdefault(record.shortcode, set()).add(record.split)
    assert len(sides) == 14 and all(len(side) == 1 for side in sides.values())


def listed(folder, rows, columns=("file_name", "text"), encoding="utf-8"):
    folder.mkdir(exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([columns, *rows])


def test_a_text_beside_the_image_goes_before_the_list(workplace, tmp_path):
    folder = tmp_path / "mixed"
    for i in range(4):
        photograph(folder / f"p{i}.jpg", i)
    (folder / "p1.txt").write_text("beside")
    listed(folder, [("p0.jpg", "from\n the  list"), ("p1.jpg", "listed"), ("p2.jpg", "")])
    assert texts(scrape(folder)) == {"p0_1": "from the list", "p1_1": "beside"}


def test_plain_numbered_names_stay_posts_of_their_own(workplace, tmp_path):
    folder = tmp_path / "plain"
    for i in range(4):
        photograph(folder / f"watercolour_{i}.jpg", i)
    listed(folder, [(f"watercolour_{i}.jpg", f"picture {i}") for i in range(4)])
    posts = find(ScrapeConfig(run="x", source="folder", folder=str(folder)), Run("x"))
    assert len({item.shortcode for item in posts.items}) == 4


def test_a_list_in_a_folder_below_counts_for_that_folder(workplace, tmp_path):
    folder = tmp_path / "deep"
    photograph(folder / "train/Cabcdefghi1_1.jpg", 1)
    photograph(folder / "validation/Cabcdefghi1_1.jpg", 2)
    for side in ("train", "validation"):
        listed(folder / side, [("Cabcdefghi1_1.jpg", side)], ("file_name", "prompt"))
    run = scrape(folder)
    assert sorted(texts(run).values()) == ["train", "validation"]


def test_names_that_lead_elsewhere_are_told_and_never_opened(workplace, tmp_path, capsys):
    folder = tmp_path / "hostile"
    photograph(folder / "p.jpg", 1)
    photograph(tmp_path / "secret.jpg", 2)
    names = [
        "../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "p.jpg/../../secret.jpg",
        "a\x00b.jpg",
        "",
    ]
    listed(folder, [(name, "words of another") for name in names] + [("p.jpg", "words")])
    run = scrape(folder)
    assert texts(run) == {"p_1": "words"} and len(list(run.images.glob("*.jpg"))) == 1
    assert "4 names in lists are no images here: ../secret.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([("p.jpg", "x")], ("file_name", "words"), "has the columns file_name, words: say which"),
        ([("p.jpg", "x")], ("a", "b"), "has the columns a, b: say which"),
        ([("q.jpg", "x")], ("file_name", "text"), "not used: metadata.csv"),
        ([], (), "not used: metadata.csv"),
    ],
)
def test_a_list_that_says_nothing_of_the_images_is_told_and_stops_nothing(
    workplace, tmp_path, capsys, rows, columns, words
):
    folder = tmp_path / "bad"
    photograph(folder / "p.jpg", 1)
    listed(folder, rows, columns)
    assert texts(scrape(folder)) == {} and words in capsys.readouterr().out
