"""Drawing with any weights, keeping what was drawn, and the prompt box."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import write_manifest
from helpers.core.run import Run
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import (
    SCHEDULERS,
    Cancelled,
    Request,
    Studio,
    is_blocked,
    requests_of,
    settings_of,
)
from helpers.models.pipeline import load_pipeline, sample_fast

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2)
ASKED = Request("a turtle", 4, num_inference_steps=2)


def open_studio(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Studio(Run("pictures"))


@pytest.fixture
def studio(trained_folder, monkeypatch):
    return open_studio(trained_folder, monkeypatch)


@pytest.fixture
def lora_studio(lora_folder, monkeypatch):
    return open_studio(lora_folder, monkeypatch)


def asked(**given):
    return Request("a turtle", 4, num_inference_steps=2, **given)


def pixels(studio, **given):
    return np.asarray(studio.draw([asked(**given)])[0], int)


def by_hand(model):
    pipeline = sample_fast(load_pipeline(str(model), torch.float32))
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    seed = torch.Generator().manual_seed(4)
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    return np.asarray(pipeline("a turtle", generator=seed, **size).images[0], int)


@pytest.mark.parametrize("kind", ["studio", "lora_studio"])
def test_weights_change_places_without_a_trace(request, kind):
    studio = request.getfixturevalue(kind)
    base = studio.run.read_config("train")["base_model"]
    tuned = pixels(studio)
    assert np.array_equal(tuned, by_hand(studio.run.model))
    assert np.array_equal(pixels(studio, model="base"), by_hand(base))
    assert np.array_equal(pixels(studio, strength=0.0), by_hand(base))
    assert studio.weights.steps() == ["step-000002", "step-000004"]
    assert np.abs(pixels(studio, model="step-000004") - tuned).max() <= 1  # the last is the model
    assert np.array_equal(pixels(studio), tuned)


def test_strength_goes_from_the_base_to_the_lora_as_its_scale_does(lora_studio):
    run = lora_studio.run
    pipeline = load_pipeline(run.read_config("train")["base_model"], torch.float32)
    weights = "pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(run.model / "lora", weight_name=weights)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    lora_studio.weights.put("tuned", 0.5)
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.allclose(lora_studio.weights.unet.state_dict()[name], tensor, atol=1e-5)


def test_a_checkpoint_that_is_gone_is_told(studio):
    with pytest.raises(RunError, match="step-000002, step-000004, tuned"):
        studio.draw([asked(model="step-000009")])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_the_same_alone_and_in_company(studio, scheduler, recwarn):
    some = [Request("a cat", i, "", 4, 4.0, scheduler=scheduler) for i in range(8)]
    together = studio.draw(some)
    assert np.array_equal(together[5], studio.draw([some[5]])[0])
    assert np.asarray(together[0]).std() > 0


def test_an_unknown_scheduler_is_told_with_those_there_are(studio):
    with pytest.raises(RunError, match="choose one of DPM-Solver"):
        studio.draw([asked(scheduler="magic")])


def test_a_saved_pictures_settings_draw_it_again(studio):
    request = asked(negative_prompt="ein böser Hund, 犬", width_px=48, height_px=32, strength=0.75)
    image = studio.draw([request])[0]
    path = studio.save(request, image)
    with Image.open(path) as saved:
        assert saved.size == (48, 32)
        assert json.loads(saved.info["settings"]) == json.loads(
            path.with_suffix(".json").read_text()
        )
        assert "Seed: 4, Size: 48x32" in saved.info["parameters"]
    path.with_suffix(".json").unlink()  # the picture alone will do
    assert np.array_equal(studio.redraw(path), image)


def test_settings_in_the_png_are_a_text_chunk(studio):
    path = studio.save(ASKED, studio.draw([ASKED])[0])
    assert b"tEXtsettings\x00{" in path.read_bytes()


def test_pictures_of_other_weights_or_programs_are_not_drawn_again(studio, tmp_path):
    settings = studio.settings(ASKED) | {"model_hash": "0" * 64}
    path = studio.album.save(settings, Image.new("RGB", (32, 32)))
    with pytest.raises(RunError, match="other weights"):
        studio.redraw(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(RunError, match="no settings inside"):
        studio.redraw(tmp_path / "foreign.png")


def test_other_settings_never_replace_a_picture(studio):
    first = studio.save(ASKED, studio.draw([ASKED])[0])
    before = first.read_bytes()
    other = Request("a turtle", 4, num_inference_steps=3)
    second = studio.save(other, studio.draw([other])[0])
    assert second != first and first.read_bytes() == before
    assert studio.save(ASKED, studio.draw([ASKED])[0]) == first


def test_steps_and_guidance_are_those_of_the_previews_unless_given(studio):
    config = settings_of(studio.run, num_inference_steps=None, guidance_scale=None, seed=3)
    trained = studio.run.read_config("train")
    assert config.num_inference_steps == trained["num_inference_steps"] == 2
    assert config.guidance_scale == trained["guidance_scale"]
    assert (
        settings_of(studio.run, {"batch_size": 2}, num_inference_steps=9).num_inference_steps == 9
    )


def test_the_suffix_is_added_unless_it_is_not_wanted(studio):
    asked = {"num_inference_steps": 2, "prompts": "a turtle\n\na cat", "num_images": 2}
    with_it, without = (
        requests_of(settings_of(studio.run, add_suffix=add, **asked), studio)
        for add in (True, False)
    )
    suffix = studio.run.read_config("dataset")["suffix"]
    assert suffix and [r.prompt for r in without] == ["a turtle"] * 2 + ["a cat"] * 2
    assert [r.prompt for r in with_it] == [f"{r.prompt}{suffix}" for r in without]
    assert len({request.seed for request in with_it}) == 4


def strict_checker(folder):
    """A real safety checker of random weights to which every picture is one to block."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 1, "projection_dim": 8}
    vision = small | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=small, vision_config=vision, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds.data.fill_(1.0)
    checker.concept_embeds_weights.data.fill_(-2.0)  # below any cosine
    checker.special_care_embeds.data.fill_(1.0)
    pipeline = load_pipeline(str(folder), torch.float32)
    size = {"shortest_edge": 32}
    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    pipeline.register_modules(safety_checker=checker, feature_extractor=processor)
    pipeline.register_to_config(requires_safety_checker=True)
    pipeline.save_pretrained(folder)
    write_manifest(folder)


def test_a_blocked_picture_is_labelled_and_off_is_only_by_asking(
    trained_folder, tmp_path, monkeypatch
):
    shutil.copytree(trained_folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    run = Run("pictures")
    strict_checker(run.model)
    studio = Studio(run)
    (image,) = studio.draw([ASKED])
    assert is_blocked(image) and image.size == (32, 32) and np.asarray(image).std() > 0
    assert "safety checker: on" in str(studio)
    assert is_blocked(studio.draw([asked(model="base")])[0])
    bold = Studio(run, safety_checker=False)
    assert not is_blocked(bold.draw([ASKED])[0]) and "safety checker: off" in str(bold)


def box_of(studio, **given):
    box = PromptBox(studio, CONFIG, "a turtle")
    for name, value in {"count": 1, "steps": 2, **given}.items():
        getattr(box, name).value = value
    return box


def test_the_box_brings_a_pictures_settings_back(studio):
    box = box_of(studio, seed=21, strength=0.5, scheduler="Euler", width=40, styled=False, count=2)
    box.negative_prompt.value = "rain"
    box.button.click()
    newest = box.history.children[0]  # of the base model, drawn last
    tuned = box.history.children[2]
    for name, value in {"prompt": "else", "seed": 1, "strength": 1.0, "scheduler": "DDIM"}.items():
        getattr(box, name).value = value
    box.width.value, box.styled.value, box.negative_prompt.value = 32, True, ""
    tuned.children[1].click()
    assert (box.prompt.value, box.seed.value, box.count.value) == ("a turtle", 22, 1)
    assert (box.strength.value, box.scheduler.value, box.width.value) == (0.5, "Euler", 40)
    assert box.negative_prompt.value == "rain" and not box.styled.value and not box.compare.value
    newest.children[1].click()
    assert box.compare.value and box.checkpoint.value == "tuned"
    before = set(studio.run.samples.glob("*.png"))
    tuned.children[1].click()
    box.button.click()
    assert set(studio.run.samples.glob("*.png")) == before  # the very same picture


def test_the_history_is_there_when_the_box_opens_again(studio):
    box_of(studio, seed=31, compare=False).button.click()
    (studio.run.samples / "foreign.png").write_bytes(b"no picture")
    again = PromptBox(studio, CONFIG, "else")
    assert again.history.children[0].children[1].description == "tuned 31"
    (studio.run.samples / "foreign.png").unlink()


def test_the_box_draws_a_checkpoint(studio):
    box = box_of(studio, checkpoint="step-000002", seed=41)
    box.button.click()
    titles = [row.children[0].value for row in box.gallery.children]
    assert "Checkpoint of step 000002" in titles[0] and "Base" in titles[1]
    assert (studio.run.samples / "a-turtle-step-000002-41.png").is_file()


def test_cancel_stops_a_drawing_from_another_thread(studio):
    box = box_of(studio, steps=60, seed=51, compare=False)
    begun = threading.Event()
    box.bar.observe(lambda change: begun.set(), "value")
    worker = threading.Thread(target=box.button.click)
    worker.start()
    assert begun.wait(60)
    box.cancel.click()
    worker.join()
    assert box.message.value == "Cancelled." and not box.button.disabled and box.cancel.disabled
    assert not list(studio.run.samples.glob("*-51.png"))
    box.steps.value = 2
    box.button.click()
    assert "Kept in" in box.message.value


def test_a_cancelled_drawing_leaves_the_studio_whole(studio):
    def stop(_done, _steps):
        raise Cancelled

    with pytest.raises(Cancelled):
        studio.draw([ASKED], progress=stop)
    assert np.array_equal(studio.draw([ASKED])[0], studio.draw([ASKED])[0])


def test_what_is_told_in_the_box_is_text(studio):
    box = box_of(studio, scheduler="DDIM")
    box._say("<img src=x>")
    assert "<img" not in box.message.value
