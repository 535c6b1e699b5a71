"""What the prompt box, and 05 around it, tell a person."""

import logging
import threading

import numpy as np
import pytest
import torch

from helpers.config import InferenceConfig
from helpers.inference.draw.sampler import Request, Sampler, blocked_label, make_requests
from helpers.inference.draw.schedulers import SCHEDULERS, make_scheduler
from helpers.inference.judge.copies import MIN_HELD_OUT
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.judgement import judge
from helpers.inference.report import report, verify_report
from helpers.inference.share.model_card import write_card
from tests.test_inference import washes
from tests.test_inference_draw import box_of, strict_checker

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8, probed_captions=2)
LONG = " ".join(f"a cat number {i}" for i in range(100))


@pytest.fixture
def run(trained_run):
    return trained_run


@pytest.fixture
def sampler(run):
    return Sampler(run)


# prompts that are too long


def test_a_prompt_of_300_words_is_told_and_keeps_its_suffix(sampler):
    box = box_of(sampler, compare=False)
    box.prompt.value = LONG
    box.button.click()
    limit = sampler.prompts.max_tokens
    assert f"The model reads {limit} tokens: this prompt ends at" in box.message.value
    assert "words are left out; the suffix is kept" in box.message.value
    fitted = sampler.prompts.truncate(sampler.styled(LONG))
    ids = sampler.pipeline.tokenizer(fitted).input_ids
    suffix = sampler.pipeline.tokenizer(sampler.suffix).input_ids[1:-1]
    assert len(ids) <= limit < len(ids) + 4 and ids[-len(suffix) - 1 : -1] == suffix
    assert LONG.startswith(fitted.removesuffix(sampler.suffix))
    (entry,) = [c for c in box.history.children if c.children[1].description == "tuned 1000"]
    box.prompt.value = "else"
    entry.children[1].click()
    assert box.prompt.value == LONG  # as it was typed


def test_the_words_beyond_the_models_length_change_nothing_and_the_suffix_does(sampler):
    def pixels(prompt):
        return np.asarray(sampler.draw([Request(prompt, 3, num_inference_steps=2)])[0])

    styled = pixels(sampler.styled(LONG))
    assert np.array_equal(styled, pixels(sampler.styled(LONG + " in the rain")))
    assert not np.array_equal(styled, pixels(LONG))


@pytest.mark.parametrize(
    "prompt", ["", "a cat", "猫" * 300, "x" * 900, "a,b;c:" * 80, "  a  cat " * 60, "🐈" * 200]
)
@pytest.mark.parametrize("styled", [True, False])
def test_whatever_is_typed_is_cut_to_what_is_read(sampler, prompt, styled):
    asked = sampler.styled(prompt) if styled else prompt
    fitted, tokens = sampler.prompts.truncate(asked), sampler.pipeline.tokenizer
    ending = sampler.suffix if styled and prompt else ""
    assert len(tokens(fitted).input_ids) <= sampler.prompts.max_tokens and fitted.endswith(ending)
    assert asked.startswith(fitted.removesuffix(ending))
    assert bool(sampler.prompts.truncation_warning(asked)) == (fitted != asked)
    assert prompt in ("", "a cat") or len(fitted) > len(ending)


def test_prompts_of_the_notebook_that_are_too_long_are_told_once_each(sampler, caplog):
    config = InferenceConfig(
        run="pictures", prompts=f"a cat\n{LONG}", num_images=3, negative_prompt=LONG
    )
    with caplog.at_level(logging.WARNING):
        make_requests(config, sampler)
    assert [("suffix is kept" in r.getMessage()) for r in caplog.records] == [True, False]


# errors in the box's thread


def in_a_thread(box):
    worker = threading.Thread(target=box.button.click)
    worker.start()
    worker.join()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ({"beta_start": None}, "TypeError: "),
        ({"prediction_type": "nonsense"}, "ValueError: prediction_type given as nonsense"),
        ({"num_train_timesteps": 0}, ""),
    ],
)
def test_any_error_while_drawing_is_a_line_in_the_box_and_it_works_on(sampler, plant, words):
    box, whole = box_of(sampler, compare=False), dict(sampler.scheduler_config)
    sampler.scheduler_config |= plant
    in_a_thread(box)
    said = box.message.value
    assert said.startswith(words) and said.endswith(
        "(nothing was lost: change a setting and draw again)"
    )
    assert not box.button.disabled and box.cancel.disabled
    sampler.scheduler_config = whole
    in_a_thread(box)
    assert "Kept in" in box.message.value


def test_settings_that_the_fields_do_not_take_are_told(sampler):
    box = box_of(sampler, compare=False)
    box.button.click()
    _, settings = sampler.album.newest(1)[0]
    drawn = sampler.draw([Request("a", 1)])[0]
    sampler.album.save(settings | {"scheduler": "of another version"}, drawn)
    box = box_of(sampler)
    box.history.children[0].children[1].click()
    assert box.message.value.startswith("TraitError: Invalid selection")


def test_latents_of_nan_are_told_not_drawn_black(sampler):
    box = box_of(sampler, compare=False)
    sampler.pipeline.unet.conv_out.bias.data.fill_(torch.nan)
    box.button.click()
    assert "DPM-Solver++ in 2 steps gives NaN or inf" in box.message.value
    assert not list(sampler.run.samples.glob("*.png"))


def test_a_base_that_is_gone_is_told_and_the_models_pictures_are_kept(run, tmp_path, tiny_base):
    sampler = Sampler(run)
    sampler.weights.base_model = str(tmp_path / "gone")
    box = box_of(sampler)
    box.button.click()
    assert "put back the base model that 04_train was given" in box.message.value
    assert len(list(run.samples.glob("*-tuned-1000.png"))) == 1 and not box.button.disabled


# schedulers


SCHEDULES = {
    "SD 1": {"beta_schedule": "scaled_linear", "steps_offset": 1},
    "zero terminal SNR": {
        "beta_schedule": "scaled_linear",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    },
    "zero terminal SNR, leading": {
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 1},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_scheduler_comes_to_its_end_at_any_number_of_steps(schedule, scheduler):
    """Of a model that is right about everything: all pictures are grey, and so the last latents are 0.

    Euler ancestral rounds to NaN in 4 steps of a cosine schedule, diffusers' own fault, which the box tells.
    """
    config = {"beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    config |= {"clip_sample": False, "set_alpha_to_one": False}
    config |= SCHEDULES[schedule]
    by_v = config.get("prediction_type") == "v_prediction"
    for steps in (1, 3, 25, 60, 1000):
        noise_scheduler = make_scheduler(scheduler, config, steps)
        noise_scheduler.set_timesteps(steps)
        latents = torch.randn(1, 4, 4, 4) * noise_scheduler.init_noise_sigma
        for time in noise_scheduler.timesteps:
            seen = noise_scheduler.scale_model_input(latents, time)
            alpha = noise_scheduler.alphas_cumprod[int(time)]
            noise = seen / (1 - alpha).clamp(min=1e-8).sqrt()
            latents = noise_scheduler.step(
                alpha.sqrt() * noise if by_v else noise, time, latents
            ).prev_sample
        assert latents.abs().max() < 5, (steps, latents.abs().max())
        assert len(noise_scheduler.timesteps) in (steps, steps + 1)  # PNDM warms up by one


# what cannot be judged


def test_a_safety_checker_that_blocks_everything_leaves_a_report_of_what_was_blocked(run):
    strict_checker(run.model)
    figures = report(CONFIG, Sampler(run))
    assert figures["blocked"] == 3 * 8 + 2
    assert "the safety checker blocked 8" in figures["style_gain"]["left_out"]
    assert (
        "the safety checker blocked 8" in figures["verdict"]
        and "validation loss" in figures["verdict"]
    )
    assert figures["style_order"] is None and figures["copies"]["pairs"] == []
    page, card = run.report_html.read_text(), write_card(run).read_text()
    assert "blocked <b>26</b>" in page and "not judged" in page
    assert "blocked by the safety checker | 26 pictures" in card
    assert figures["verdict"] in verify_report(run)


@pytest.mark.parametrize("name", ["base", "tuned", "plain"])
def test_one_group_that_is_blocked_leaves_out_what_it_is_needed_for(name):
    groups = {
        "train": washes(20, 1, 1),
        "held_out": washes(20, 1, 2),
        "base": washes(8, 0, 3),
        "tuned": washes(8, 1, 4),
        "plain": washes(8, 0, 5),
    }
    labels = [blocked_label((64, 64)) for _ in range(8)]
    found = judge(Groups(**groups | {name: labels}, probe=[]))
    assert "the safety checker blocked 8" in found.style_gain["left_out"] and found.blocked == 8
    assert ("share" in found.copies) == (name != "tuned")
    some = judge(Groups(**groups | {name: groups[name][:6] + labels[:2]}, probe=[]))
    assert some.style_gain.low <= some.style_gain.value and some.blocked == 2


@pytest.mark.parametrize("held_out", [0, 1, 2, MIN_HELD_OUT - 1, MIN_HELD_OUT, 30])
def test_no_copy_verdict_from_too_few_held_out_images(held_out):
    groups = Groups(
        washes(20, 1, 1), washes(held_out, 1, 2), washes(8, 0, 3), washes(8, 1, 4), washes(8, 0, 5)
    )
    copies = judge(groups).copies
    assert ("share" in copies) == (held_out >= MIN_HELD_OUT) == ("left_out" not in copies)
    if held_out < MIN_HELD_OUT:
        assert f"{held_out} held-out images are too few" in copies["left_out"]
        assert "threshold" not in copies and len(copies["pairs"]) == 6  # for a person's eye


def test_too_few_held_out_images_are_told_in_report_page_and_card(run):
    figures = report(CONFIG, Sampler(run))
    said = "3 held-out images are too few to tell a copy from a likeness (10 are needed)"
    assert f"Whether it copies is not judged: {said}" in figures["verdict"]
    assert "come nearer to a training image" not in figures["verdict"]
    page, card = run.report_html.read_text(), write_card(run).read_text()
    assert f"Not judged: {said}" in page and "likely copy" not in page
    assert f"likely copies of training images | not judged: {said}" in card
