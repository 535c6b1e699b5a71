"""03 takes captions as they are, whatever they say, and images that are of this run and these settings alone."""

from dataclasses import replace

import pandas as pd
import pytest

from helpers.caption.ledger import edit
from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.core.records import (
    Caption,
    Post,
    append_row,
    latest,
    read_metadata,
    read_rows,
    rewrite,
)
from helpers.core.run import Run
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.charts import charts
from helpers.dataset.curate import curate
from helpers.dataset.dataset_files import read_records
from helpers.dataset.split import split
from tests.conftest import make_dataset, photograph

CONFIG = DatasetConfig(run="pictures", min_side_px=32)
ODD = (
    ["null", "NaN", "None", "NA", "n/a", "nan", "NULL", "<NA>"],
    ["1", "2", "03", "4.50", "-1e5", "inf", "7", "8"],
    ["True", "False", "true", "false", "True", "False", "True", "False"],
    ["a, b", 'say "hi"', "null", "7", "2024-01-01", "it's", "a\u00a0b", "ünï 🐞"],
)


def chosen(run, config=CONFIG):
    kept, left_out = curate(config, run)
    return kept.assign(split=split(kept, config.validation_share, config.seed)), left_out


@pytest.mark.parametrize("words", ODD, ids=["null", "numbers", "booleans", "mixed"])
@pytest.mark.parametrize("suffix", ["", " in a mira style"])
def test_a_caption_of_any_words_is_a_caption(workplace, tmp_path, words, suffix):
    for i, text in enumerate(words):
        photograph(tmp_path / f"in/{i}.jpg", i).with_suffix(".txt").write_text(text)
    run, config = make_dataset("odd", tmp_path / "in"), DatasetConfig(
        run="odd", min_side_px=32, suffix=suffix
    )  # fmt: skip
    build(config, run, *chosen(run, config))
    assert "images in runs/odd/dataset" in verify_dataset(run)
    told = {record.file_name: record.text for record in read_records(run.dataset)}
    captions = {row.file_name: row.caption for row in read_rows(run.captions, Caption)}
    assert told == {name: (text + suffix).lstrip("-") for name, text in captions.items()}
    for side in ("train", "validation"):
        rows = dict(read_metadata(run.split_metadata(side)))
        assert rows.items() <= told.items()
        read = pd.read_csv(run.split_metadata(side))
        assert [text.removesuffix("\u00a0") for text in read["text"]] == list(rows.values())


def test_a_caption_of_the_suffix_alone_is_the_suffix(dataset):
    row = latest(read_rows(dataset.captions, Caption))["Holiday-00_1.jpg"]
    edit(dataset, row, CONFIG.suffix + ".")
    build(CONFIG, dataset, *chosen(dataset))
    rows = [read_metadata(dataset.split_metadata(side)) for side in ("train", "validation")]
    assert "in a mira watercolor style" in {text for side in rows for _, text in side}
    assert verify_dataset(dataset)


def test_words_and_permissions_mended_between_two_cells_are_in_the_dataset(dataset):
    images = chosen(dataset)
    posts = [replace(post, permission="own work") for post in read_rows(dataset.posts, Post)]
    rewrite(dataset.posts, lambda row: False, posts)
    row = latest(read_rows(dataset.captions, Caption))["Holiday-05_1.jpg"]
    edit(dataset, row, "my words")
    build(CONFIG, dataset, *images)
    (record,) = [r for r in read_records(dataset.dataset) if r.image == "Holiday-05_1.jpg"]
    assert (record.text, record.captioner) == ("my words in a mira watercolor style", "person")
    assert {r.permission for r in read_records(dataset.dataset)} == {"own work"}
    assert verify_dataset(dataset)


def test_images_chosen_by_other_settings_of_another_run_or_without_a_side_are_refused(
    dataset, workplace, tmp_path
):
    kept, left_out = chosen(dataset)
    before = (dataset.dataset / "manifest.json").read_bytes()
    other = DatasetConfig(run="pictures", min_side_px=48, max_aspect=2.0)
    with pytest.raises(
        RunError, match="min_side_px, max_aspect changed since the images were chosen: run the cell"
    ):
        build(other, dataset, kept, left_out)
    with pytest.raises(RunError, match="no column split: run the cell 'One post, one side'"):
        build(CONFIG, dataset, kept.drop(columns="split"), left_out)
    with pytest.raises(RunError, match="no column split: run the cell 'One post, one side'"):
        charts(kept.drop(columns="split"), CONFIG.suffix)
    for call in (curate, lambda config, run: build(config, run, kept, left_out)):
        with pytest.raises(
            RunError, match="settings are of run 'pictures'.*run the settings' cell again"
        ):
            call(CONFIG, Run("another"))
    photograph(tmp_path / "in/x.jpg", 77).with_suffix(".txt").write_text("a cat")
    for i in range(5):
        photograph(tmp_path / f"in/{i}.jpg", 70 + i).with_suffix(".txt").write_text("a cat")
    foreign = make_dataset("another", tmp_path / "in")
    with pytest.raises(RunError, match="Holiday-0.* has changed since the images were chosen"):
        build(DatasetConfig(run="another", min_side_px=32), foreign, kept, left_out)
    append_row(dataset.captions, Caption("Holiday-05_1.jpg", "", "refused", "claude"))
    with pytest.raises(RunError, match="Holiday-05_1.jpg has changed since"):
        build(CONFIG, dataset, kept, left_out)
    assert (dataset.dataset / "manifest.json").read_bytes() == before


def test_a_new_suffix_alone_needs_no_new_choice(dataset):
    kept, left_out = chosen(dataset)
    build(DatasetConfig(run="pictures", min_side_px=32, suffix=", mira"), dataset, kept, left_out)
    assert {r.text[-6:] for r in read_records(dataset.dataset)} == {", mira"}
