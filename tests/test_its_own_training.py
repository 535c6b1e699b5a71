"""05 speaks of the training that its model is of, whatever 03 and other trainings did since."""

import shutil
from dataclasses import replace

import pytest

from helpers.config import DatasetConfig, InferenceConfig, TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.core.records import rewrite
from helpers.dataset.build import build
from helpers.dataset.curate import curate
from helpers.dataset.split import split
from helpers.inference.draw.sampler import Request, Sampler, make_config, make_requests
from helpers.inference.report import report, verify_report
from helpers.inference.share.model_card import write_card
from helpers.inference.trained import read_trained
from helpers.train.finish import verify_model
from helpers.train.trainer import train
from tests.conftest import SMALL_TRAINING, train_until

SUFFIX = " in a mira watercolor style"
CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8, probed_captions=2)


@pytest.fixture
def run(trained_run):
    return trained_run


def build_again(run, seed=0, **given):
    config = DatasetConfig(run=run.name, min_side_px=32, **given)
    kept, left_out = curate(config, run)
    build(config, run, kept.assign(split=split(kept, 0.25, seed)), left_out)


def words_of(remarks):
    return " ".join(remarks)


def test_another_suffix_in_03_changes_no_prompt_and_is_told(run):
    before = read_trained(run).pictures("validation")
    build_again(run, suffix=" in oil")
    sampler = Sampler(run)
    assert sampler.suffix == SUFFIX and sampler.styled("a cat") == f"a cat{SUFFIX}"
    assert sampler.trained.pictures("validation") == before  # without the other suffix
    told = "captions end in ' in oil' now, and the model knows ' in a mira watercolor style'"
    assert told in str(sampler) and "dataset/ has changed since this model was trained" in str(
        sampler
    )
    figures = report(CONFIG, sampler)
    assert told in words_of(figures["remarks"]) and told in verify_report(run)
    page = run.report_html.read_text()
    assert f"Each prompt ends with “{SUFFIX.strip()}”" in page and "and the model knows" in page
    assert f"`{SUFFIX}`" in (card := write_card(run).read_text()) and told in card
    assert "dataset/ has changed since" in verify_model(run)


def test_a_new_split_has_the_model_judged_by_what_it_has_not_seen(run):
    unseen = {path.name for path, _ in read_trained(run).pictures("validation")}
    seen = {path.name for path, _ in read_trained(run).pictures("train")}
    for seed in range(1, 4):
        build_again(run, seed=seed)
        trained = read_trained(run)
        assert {path.name for path in run.split_images("validation")} != unseen
        assert {path.name for path, _ in trained.pictures("validation")} == unseen
        assert {path.name for path, _ in trained.pictures("train")} == seen
        assert all(path.is_file() for path, _ in trained.pictures("validation"))


def test_the_same_dataset_built_again_is_no_change(run):
    build_again(run)
    assert read_trained(run).remarks() == [] and "changed" not in verify_model(run)


def test_a_dataset_without_a_picture_that_the_model_has_not_seen_is_told(run):
    unseen = {path.name for path, _ in read_trained(run).pictures("validation")}
    rewrite(run.posts, lambda row: row["file_name"] not in unseen)
    build_again(run)
    figures = report(CONFIG, Sampler(run))
    assert "0 of its pictures are new to the model" in words_of(figures["remarks"])
    assert figures["style_gain"] == {"left_out": "there are 0 held-out images"}
    assert "0 held-out images are too few" in figures["copies"]["left_out"]
    assert "The style is not judged" in run.report_html.read_text()


def begin_another(run, **given):
    """As 04 advises: checkpoints are moved away, and a training with other settings begins."""
    run.checkpoints.rename(run.folder / "checkpoints-before")
    base = run.read_config("train")["base_model"]
    given = {"run": run.name, "base_model": base, **SMALL_TRAINING, **given}
    return configure(TrainConfig, given)


def test_a_training_that_was_begun_since_is_in_no_figure(run):
    own = read_trained(run)
    curve = [row for row in own.log if "held_out_loss" in row]
    config = begin_another(run, max_steps=8, learning_rate=0.1, guidance_scale=9.0)
    train_until(config, run, 5)
    trained = read_trained(run)
    assert trained.settings == own.settings and run.read_config("train")["max_steps"] == 8
    assert make_config(run).guidance_scale == own.settings["guidance_scale"] != 9.0
    assert [(r["step"], r["held_out_loss"]) for r in trained.log] == [
        (r["step"], r["held_out_loss"]) for r in curve
    ]
    assert trained.previews() == []
    figures = report(CONFIG, Sampler(run))
    assert "Another training has begun in this run since" in words_of(figures["remarks"])
    page = run.report_html.read_text()
    assert "Step by step" not in page and "step 8" not in page
    list(train(config, run))  # it ends, and the report is of it
    again = report(CONFIG, Sampler(run))
    assert again["remarks"] == [] and again["hashes"] != figures["hashes"]
    assert "step 8" in run.report_html.read_text()


def test_a_training_that_goes_on_further_keeps_its_curve_and_previews(run):
    own, base = read_trained(run), run.read_config("train")["base_model"]
    given = {"run": "pictures", "base_model": base, **SMALL_TRAINING, "max_steps": 12}
    train_until(configure(TrainConfig, given), run, 8)
    trained = read_trained(run)
    assert trained.remarks() == [] and trained.log == own.log
    assert [path.name for path in trained.previews()] == ["step-000000.png", "step-000004.png"]


def test_a_run_of_an_older_version_opens_with_the_suffix_of_its_models_card(run):
    verdict = read_json(run.verdict)
    settings = verdict.pop("trained_with")["settings"]
    write_json(run.verdict, verdict)
    assert read_trained(run).settings == settings and read_trained(run).log
    build_again(run, suffix=" in oil")
    sampler = Sampler(run)
    assert sampler.suffix == SUFFIX and "has changed" in str(sampler)
    assert report(CONFIG, sampler)["suffix"] == SUFFIX
    run.image_losses.unlink()
    assert len(read_trained(run).pictures("validation")) == 3


def test_what_a_picture_was_asked_with_is_drawn_the_same_after_03_ran_again(run):
    asked = make_requests(replace(CONFIG, prompts="a cat"), Sampler(run))
    before = Sampler(run).draw(asked)[0].tobytes()
    build_again(run, suffix=" in oil")
    again = make_requests(replace(CONFIG, prompts="a cat"), Sampler(run))
    assert again == asked and Sampler(run).draw(again)[0].tobytes() == before
    assert isinstance(again[0], Request)


def test_a_model_that_was_trained_anew_while_05_was_open_is_not_reported_as_the_old_one(run):
    sampler = Sampler(run)
    asked = [Request("a cat", 1, num_inference_steps=2)]
    before, settings = sampler.draw(asked)[0].tobytes(), sampler.settings(asked[0])
    list(train(begin_another(run, learning_rate=0.1), run))
    with pytest.raises(RunError, match="another model than was loaded: run 05_inference from its"):
        report(CONFIG, sampler)
    assert sampler.draw(asked)[0].tobytes() == before and sampler.settings(asked[0]) == settings
    assert Sampler(run).settings(asked[0])["model_hash"] != settings["model_hash"]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"x": 1}]', "7"])
def test_what_a_damaged_file_cannot_tell_is_taken_from_what_there_is(run, content):
    own = read_trained(run)
    run.image_losses.write_text(content)
    verdict = read_json(run.verdict)
    write_json(run.verdict, verdict | {"trained_with": [content]})
    run.train_log.unlink()
    found = read_trained(run)
    assert (found.suffix, found.settings) == (own.suffix, own.settings)
    assert found.pictures("validation") == own.pictures("validation") and found.remarks() == []


def test_a_model_draws_without_its_dataset_and_is_judged_with_it_alone(run):
    shutil.rmtree(run.dataset)
    sampler = Sampler(run)
    assert sampler.draw([Request("a cat", 1, num_inference_steps=1)]) and "cpu" in str(sampler)
    with pytest.raises(RunError, match="dataset is missing: run 03_dataset"):
        report(CONFIG, sampler)
