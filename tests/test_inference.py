import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.records import Rejection, append_rows
from helpers.core.run import Run
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import (
    Request,
    Sampler,
    draw_missing,
    make_requests,
)
from helpers.inference.judge.copies import CopyFinder
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.judgement import judge
from helpers.inference.judge.style import StyleAxis, features, style_gain
from helpers.inference.page import figures_table
from helpers.inference.report import report, verify_report

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8)


@pytest.fixture
def sampler(trained_run):
    return Sampler(trained_run)


def test_a_picture_does_not_depend_on_its_neighbours(sampler):
    asked = [Request("a cat", seed, num_inference_steps=2) for seed in range(8)]
    together = sampler.draw(asked, batch_size=8)
    alone = [sampler.draw([request])[0] for request in asked]
    for first, second in zip(together, alone, strict=True):
        assert np.array_equal(first, second)


def test_prompts_get_the_suffix_once_and_seeds_of_their_own(sampler):
    config = InferenceConfig(
        run="pictures", prompts="a cat\n\na dog in a mira watercolor style", num_images=2, seed=5
    )
    asked = make_requests(config, sampler)
    assert [request.seed for request in asked] == [5, 6, 7, 8]
    assert {request.prompt.count("mira watercolor") for request in asked} == {1}


def test_samples_lie_beside_their_settings_and_are_drawn_once(sampler):
    asked = make_requests(
        InferenceConfig(run="pictures", prompts="a cat", num_inference_steps=2), sampler
    )
    (path,) = draw_missing(sampler, asked, 4)
    settings = json.loads(path.with_suffix(".json").read_text())
    assert settings["prompt"] == asked[0].prompt and settings["model_hash"] == sampler.model_hash
    before = path.stat().st_mtime_ns
    assert list(draw_missing(sampler, asked, 4)) == [path] and path.stat().st_mtime_ns == before


def test_the_report_is_one_page_that_needs_nothing(sampler):
    figures = report(CONFIG, sampler)
    page = sampler.run.report_html.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    assert "<b>thing</b>" not in page and "&lt;b&gt;thing" in page  # captions are escaped
    HTMLParser().feed(page)
    for name in ("base", "last", "best", "best_step"):
        assert name in figures["validation_loss"]
    gain = figures["style_gain"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert {"with_suffix", "without_suffix"} <= figures["suffix_switch"].keys()
    assert {"copies", "seconds", "cost_usd", "hashes"} <= figures.keys()
    assert figures["verdict"] in verify_report(sampler.run)


def test_a_notebook_shows_the_figures_with_how_to_read_them():
    interval = {"value": 0.8123, "low": 0.75, "high": 0.84}
    figures = {
        "validation_loss": {"base": 0.4566, "last": 0.1276},
        "style_gain": interval,
        "suffix_switch": {"with_suffix": 1.0, "without_suffix": 0.9167},
        "kid": {"left_out": "there are 2 held-out images; it takes three of each"},
    }
    shown = figures_table(figures).data.set_index("figure")
    assert dict(shown["value"]) == {
        "validation loss": "0.457 to 0.128",
        "style gain": "0.81 (0.75 to 0.84)",
        "suffix switch": "100% and 92%",
        "style distance": "not judged",
    }
    assert "it takes three" in figures_table(figures).to_html()
    none = {"left_out": "no image was held out"}
    few = figures_table(figures | {"style_gain": none, "suffix_switch": none})
    assert list(few.data["value"]) == ["0.457 to 0.128", "not judged", "not judged"]


def test_the_report_counts_what_was_left_out_by_reason(trained_folder, tmp_path, monkeypatch):
    shutil.copytree(trained_folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    run = Run("pictures")
    dark = "its brightness of 3.0 is below min_brightness 24"
    rows = [
        Rejection("walk.mp4", "scrape", "is a video"),
        Rejection("0.jpg", "scrape", "did not come whole"),  # it has been taken since
        *(Rejection(f"{name}_1.jpg", "dataset", dark, "too dark") for name in ("night", "cave")),
    ]
    append_rows(run.rejected, rows)
    run.report_json.unlink(missing_ok=True)
    assert report(CONFIG, Sampler(run))["images_left_out"] == {"too dark": 2, "is a video": 1}
    page = run.report_html.read_text()
    assert "<td>too dark</td><td>2</td>" in page and f"<td>cave_1.jpg</td><td>{dark}</td>" in page
    assert "did not come whole" not in page


def test_a_second_report_is_read_not_made(sampler):
    report(CONFIG, sampler)
    before = sampler.run.report_html.stat().st_mtime_ns
    report(CONFIG, sampler)
    assert sampler.run.report_html.stat().st_mtime_ns == before


def test_the_prompt_box_draws_both_models_and_keeps_them(sampler):
    box = PromptBox(sampler, CONFIG, "a turtle")
    box.count.value, box.seed.value, box.steps.value = 2, 77, 2
    box.button.click()
    assert "Kept in" in box.message.value and not box.button.disabled
    assert len(box.gallery.children) == 2
    assert (sampler.run.samples / "a-turtle-tuned-78.png").is_file()
    assert (sampler.run.samples / "a-turtle-base-77.json").is_file()
    assert box.bar.value == box.bar.max


def test_an_empty_prompt_is_told_in_the_box(sampler):
    box = PromptBox(sampler, CONFIG, "  ")
    box.button.click()
    assert box.message.value == "Type a prompt first."


def test_inference_before_training_names_the_notebook(workplace):
    with pytest.raises(RunError, match="run 04_train with run='none' first"):
        Sampler(Run("none"))


def test_a_damaged_model_is_not_loaded(sampler):
    path = sampler.run.model / "README.md"
    text = path.read_text()
    path.write_text("other")
    with pytest.raises(
        RunError, match=r"README.md is not what manifest.json says: run 04_train again"
    ):
        Sampler(sampler.run)
    path.write_text(text)


def washes(count, strength, seed):
    """Pictures between flat colour (0) and speckled paper (1)."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        flat = np.ones((64, 64, 3)) * rng.uniform(0.2, 0.9, 3)
        flat[20:40, 20:40] = rng.uniform(0, 1, 3)
        noisy = (
            flat * (1 - 0.5 * strength)
            + 0.4 * strength
            + 0.15 * strength * rng.normal(size=flat.shape)
        )
        pictures.append(Image.fromarray((np.clip(noisy, 0, 1) * 255).astype(np.uint8)))
    return pictures


def test_style_gain_orders_base_half_way_tuned_and_art():
    def group(s, seed):
        return np.stack([features(picture) for picture in washes(40, s, seed)])

    axis = StyleAxis.between(group(0, 1), group(1, 2))
    base, art = axis.place(group(0, 3)), axis.place(group(1, 4))
    gains = [style_gain(base, axis.place(group(s, 5)), art) for s in (0, 0.5, 0.9)]
    assert gains[0].high < gains[1].low and gains[1].high < gains[2].low
    assert abs(gains[0].value) < 0.1 and 0.7 < gains[2].value < 1.2


def test_the_judgement_tells_a_switch_from_none():
    def groups(plain):
        return Groups(
            washes(40, 1, 1),
            washes(20, 1, 2),
            washes(40, 0, 3),
            washes(40, 0.95, 4),
            washes(40, plain, 5),
        )

    assert judge(groups(0)).suffix_switch["without_suffix"] > 0.9
    assert judge(groups(1)).suffix_switch["without_suffix"] < 0.1
    assert judge(groups(0)).suffix_switch["with_suffix"] > 0.9


def test_a_copy_is_found_mirrored_and_resized():
    finder = CopyFinder([photo_like(i) for i in range(50)], [photo_like(i) for i in range(60, 80)])
    copy = photo_like(7).resize((70, 60)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found, stranger = finder.nearest([copy, photo_like(99)])
    assert found.train == 7 and found.likeness > 0.97
    assert stranger.likeness < 0.9


def photo_like(seed):
    rng = np.random.default_rng(seed)
    return Image.fromarray((rng.random((6, 6, 3)) * 255).astype(np.uint8)).resize(
        (96, 96), Image.Resampling.BICUBIC
    )
