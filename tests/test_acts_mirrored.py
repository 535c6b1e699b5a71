"""What a person does in a form after Run all is on the mirror, with no cell run again."""

import shutil

import pandas as pd
import pytest

from helpers.caption.review import EVERY, ReviewTable
from helpers.config import CaptionConfig, InferenceConfig
from helpers.core.records import Caption, latest, read_rows
from helpers.core.run import Run
from helpers.dataset.gallery import gallery
from helpers.host import here
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import Sampler
from helpers.inference.judge.blind_box import BlindBox
from helpers.mirror import sync
from tests.conftest import lines
from tests.drive import mounted

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, blind_pairs=4)


@pytest.fixture
def fresh_machine(tmp_path, monkeypatch):
    """Lose this machine once its mirror is idle, and restore the run on another."""
    (tmp_path / "cloud").mkdir()
    monkeypatch.setattr(here, "MIRROR", mounted(tmp_path / "cloud"))
    monkeypatch.setattr(sync, "_mirrors", {})

    def lose(run: Run) -> Run:
        (mirror,) = sync._mirrors.values()
        with mirror._turn:
            assert mirror._turn.wait_for(lambda: mirror._done == mirror._asked > 0, 60)
        shutil.rmtree(run.folder)
        sync._mirrors.clear()
        sync.restore(run)
        return run

    return lose


def test_captions_edited_and_accepted_and_an_image_taken_back(dataset, fresh_machine):
    table = ReviewTable(CaptionConfig(run="pictures"), dataset)
    table.filter.value = EVERY
    _, words, buttons = table.table.children[0].children[1].children
    words.value = "a harbour at noon"
    table.table.children[1].children[1].children[2].children[0].click()
    fresh_machine(dataset)
    rows = list(latest(read_rows(dataset.captions, Caption)).values())
    assert [row.status for row in rows].count("edited") == 2
    assert "a harbour at noon" in [row.caption for row in rows]
    left_out = pd.DataFrame([{"file_name": rows[0].file_name, "kind": "too dark"}])
    gallery(dataset, left_out).children[0].children[0].click()
    fresh_machine(dataset)
    assert dataset.taken_back.read_text().split() == [rows[0].file_name]


def test_pictures_drawn_and_blind_picks(trained_run, fresh_machine):
    sampler = Sampler(trained_run)
    box = PromptBox(sampler, CONFIG, "a cat")
    box.count.value, box.compare.value = 1, False
    box.button.click()
    assert len(list(fresh_machine(trained_run).samples.glob("*.png"))) == 1
    blind = BlindBox(sampler, CONFIG, lambda: None)
    blind.against.value = "base"
    blind.begin.click()
    blind.left.click()
    assert len(lines(fresh_machine(trained_run).blind)) == 1


def test_a_mirror_that_cannot_be_made_does_not_stop_a_form(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    place = here.Place(tmp_path / "file/mirror", name="a mirror", is_made=True)
    monkeypatch.setattr(here, "MIRROR", place)
    monkeypatch.setattr(sync, "_mirrors", {})
    table = ReviewTable(CaptionConfig(run="pictures"), dataset)
    table.filter.value = EVERY
    table.table.children[0].children[1].children[1].value = "a harbour at noon"
    assert table.message.value.endswith(": kept")
