import pytest

from helpers.caption.ledger import caption_images, pending, problems, verify_captions
from helpers.config import CaptionConfig, ScrapeConfig
from helpers.errors import RunError
from helpers.records import Caption, append_row, latest, read_rows
from helpers.run import Run
from helpers.scrape.intake import find, take
from tests.conftest import lines, photograph

CONFIG = CaptionConfig(run="mine")


@pytest.fixture
def run(workplace, pictures):
    return rescrape(pictures)


def rescrape(pictures):
    config, run = ScrapeConfig(run="mine", source="folder", folder=str(pictures)), Run("mine")
    list(take(config, run, find(config, run)))
    return run


def caption(run, config=CONFIG):
    return list(caption_images(config, run, pending(config, run)))


def test_every_image_gets_the_words_beside_it(run):
    caption(run)
    rows = latest(read_rows(run.captions, Caption))
    assert rows["Holiday-07_1.jpg"].caption == "a picture of place number 7"
    assert "12 captions" in verify_captions(run)


def test_a_rerun_captions_only_what_is_missing_or_changed(run, pictures):
    caption(run)
    assert caption(run) == []
    (pictures / "Holiday 04.txt").write_text("a cat")
    photograph(pictures / "new.jpg", 50).with_suffix(".txt").write_text("a dog")
    rescrape(pictures)
    assert [row.caption for row in caption(run)] == ["a cat", "a dog"]


def test_an_edit_by_a_person_stands(run):
    caption(run)
    append_row(run.captions, Caption("Holiday-01_1.jpg", "my words", "edited", "person"))
    assert caption(run) == []
    assert latest(read_rows(run.captions, Caption))["Holiday-01_1.jpg"].caption == "my words"


def test_a_missing_or_empty_text_is_a_row_that_says_so(run, pictures):
    run.sidecar("Holiday-01_1.jpg").unlink()
    run.sidecar("Holiday-02_1.jpg").write_text("  ")
    caption(run)
    statuses = {row["file_name"]: row["status"] for row in lines(run.captions)}
    assert statuses["Holiday-01_1.jpg"] == "failed: no .txt beside Holiday-01_1.jpg"
    assert statuses["Holiday-02_1.jpg"] == "failed: Holiday-02_1.txt is empty"
    assert "10 captions" in verify_captions(run) and "2 images without one" in verify_captions(run)


def test_banned_and_repeated_words_are_pointed_out(run):
    run.sidecar("Holiday-01_1.jpg").write_text("a watercolor of a cat")
    run.sidecar("Holiday-02_1.jpg").write_text("a picture of place number 3")
    config = CaptionConfig(run="mine", banned_words="Watercolor, ink")
    caption(run, config)
    found = problems(config, run)
    assert [row.file_name for row in found["banned word"]] == ["Holiday-01_1.jpg"]
    assert len(found["same words as another"]) == 2


def test_no_caption_at_all_says_where_to_put_them(workplace, tmp_path):
    photograph(tmp_path / "bare/a.jpg", 1)
    run = rescrape(tmp_path / "bare")
    caption(run)
    with pytest.raises(
        RunError,
        match=r"none of the 1 images has a caption: put a .txt beside each image in .*bare",
    ):
        verify_captions(run)


def test_captioning_before_scraping_names_the_notebook(workplace):
    with pytest.raises(
        RunError, match="runs/mine/posts.jsonl is missing: run 01_scrape with run='mine' first"
    ):
        pending(CONFIG, Run("mine"))
