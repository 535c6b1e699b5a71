"""Drawing with any weights, keeping what was drawn, and the prompt box."""

import json
import shutil
import subprocess
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_manifest
from helpers.inference.draw.from_picture import FromPicture
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import (
    SCHEDULERS,
    Cancelled,
    Request,
    Sampler,
    draw_missing,
    is_blocked,
    make_config,
    make_requests,
)
from helpers.models.pipeline import load_pipeline, sample_fast

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2)
ASKED = Request("a turtle", 4, num_inference_steps=2)


@pytest.fixture
def sampler(trained_run):
    return Sampler(trained_run)


@pytest.fixture
def lora_sampler(lora_run):
    return Sampler(lora_run)


def asked(**given):
    return Request("a turtle", 4, num_inference_steps=2, **given)


def pixels(sampler, **given):
    return np.asarray(sampler.draw([asked(**given)])[0], int)


def by_hand(model):
    pipeline = sample_fast(load_pipeline(str(model), torch.float32))
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    seed = torch.Generator().manual_seed(4)
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    return np.asarray(pipeline("a turtle", generator=seed, **size).images[0], int)


@pytest.mark.parametrize("kind", ["sampler", "lora_sampler"])
def test_weights_change_places_without_a_trace(request, kind):
    sampler = request.getfixturevalue(kind)
    base = sampler.run.read_config("train")["base_model"]
    tuned = pixels(sampler)
    assert np.array_equal(tuned, by_hand(sampler.run.model))
    assert np.array_equal(pixels(sampler, model="base"), by_hand(base))
    assert np.array_equal(pixels(sampler, strength=0.0), by_hand(base))
    assert sampler.weights.steps() == ["step-000002", "step-000004"]
    assert np.abs(pixels(sampler, model="step-000004") - tuned).max() <= 1  # the last is the model
    assert np.array_equal(pixels(sampler), tuned)


def test_strength_goes_from_the_base_to_the_lora_as_its_scale_does(lora_sampler):
    run = lora_sampler.run
    pipeline = load_pipeline(run.read_config("train")["base_model"], torch.float32)
    weights = "pytorch_lora_weights.safetensors"
    pipeline.load_lora_weights(run.model / "lora", weight_name=weights)
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    lora_sampler.weights.load("tuned", 0.5)
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.allclose(
            lora_sampler.weights.modules["unet"].state_dict()[name], tensor, atol=1e-5
        )


def test_a_checkpoint_that_is_gone_is_told(sampler):
    with pytest.raises(RunError, match="step-000002, step-000004, tuned"):
        sampler.draw([asked(model="step-000009")])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_the_same_alone_and_in_company(sampler, scheduler, recwarn):
    some = [Request("a cat", i, "", 4, 4.0, scheduler=scheduler) for i in range(8)]
    together = sampler.draw(some)
    assert np.array_equal(together[5], sampler.draw([some[5]])[0])
    assert np.asarray(together[0]).std() > 0


def test_an_unknown_scheduler_is_told_with_those_there_are(sampler):
    with pytest.raises(RunError, match="choose one of DPM-Solver"):
        sampler.draw([asked(scheduler="magic")])


def test_a_saved_pictures_settings_draw_it_again(sampler):
    request = asked(negative_prompt="ein böser Hund, 犬", width_px=48, height_px=32, strength=0.75)
    image = sampler.draw([request])[0]
    path = sampler.save(request, image)
    with Image.open(path) as saved:
        assert saved.size == (48, 32)
        assert json.loads(saved.info["settings"]) == json.loads(
            path.with_suffix(".json").read_text()
        )
        assert "Seed: 4, Size: 48x32" in saved.info["parameters"]
    path.with_suffix(".json").unlink()  # the picture alone will do
    assert np.array_equal(sampler.redraw(path), image)


def test_settings_in_the_png_are_a_text_chunk(sampler):
    path = sampler.save(ASKED, sampler.draw([ASKED])[0])
    assert b"tEXtsettings\x00{" in path.read_bytes()


def test_pictures_of_other_weights_or_programs_are_not_drawn_again(sampler, tmp_path):
    settings = sampler.settings(ASKED) | {"model_hash": "0" * 64}
    path = sampler.album.save(settings, Image.new("RGB", (32, 32)))
    with pytest.raises(RunError, match="other weights"):
        sampler.redraw(path)
    Image.new("RGB", (8, 8)).save(tmp_path / "foreign.png")
    with pytest.raises(RunError, match="no settings inside"):
        sampler.redraw(tmp_path / "foreign.png")


def test_other_settings_never_replace_a_picture(sampler):
    first = sampler.save(ASKED, sampler.draw([ASKED])[0])
    before = first.read_bytes()
    other = Request("a turtle", 4, num_inference_steps=3)
    second = sampler.save(other, sampler.draw([other])[0])
    assert second != first and first.read_bytes() == before
    assert sampler.save(ASKED, sampler.draw([ASKED])[0]) == first


def cut(content):
    return content[: len(content) // 2]


def with_a_wrong_bit(content):
    at = content.index(b"IDAT") + 20
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".json", lambda content: b""),
        (".json", cut),
        (".json", lambda content: content.replace(b"turtle", b"turtl\xe9")),
        (".png", lambda content: b""),
        (".png", cut),
        (".png", lambda content: content[:-12]),
        (".png", lambda content: content[:60]),
        (".png", with_a_wrong_bit),
    ],
)
def test_a_damaged_picture_is_drawn_again_in_its_place(sampler, suffix, damage):
    requests = [ASKED, replace(ASKED, num_inference_steps=3)]  # of one name
    paths = list(draw_missing(sampler, requests, 8))
    before = {path: path.read_bytes() for path in sampler.run.samples.glob("*.*")}
    for path in paths:
        file = path.with_suffix(suffix)
        file.write_bytes(damage(before[file]))
        assert PromptBox(sampler, CONFIG, "else")
        assert list(draw_missing(sampler, requests, 8)) == paths
        assert {path: path.read_bytes() for path in sampler.run.samples.glob("*.*")} == before


def labelled(path, settings):
    """A whole PNG that another program wrote."""
    chunks = PngInfo()
    chunks.add_text("settings", settings)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)


def test_files_that_are_not_the_pictures_own_stay_as_they_are(sampler):
    settings, image = sampler.settings(ASKED), sampler.draw([ASKED])[0]
    first = sampler.album.path(settings)
    first.parent.mkdir(exist_ok=True)
    labelled(first, "{}")
    second = sampler.album.path(settings)
    second.write_bytes(b"cut off")
    third = sampler.album.path(settings)
    third.with_suffix(".json").symlink_to("gone")
    fourth = sampler.save(ASKED, image)
    shutil.copy(first, fourth)  # as an image editor saves over it
    before = {path: path.read_bytes() for path in (first, second, fourth)}
    fifth = sampler.save(ASKED, image)
    assert len({first, second, third, fourth, fifth}) == 5 and sampler.album.has(settings)
    assert {path: path.read_bytes() for path in before} == before
    assert third.with_suffix(".json").is_symlink() and not third.exists()


FOREIGN = [
    {"prompt": None},
    {"seed": "4"},
    {"seed": 2**64},
    {"model": None},
    {"model": "../../model"},
    {"model": "light"},
    {"strength": None},
    {"guidance_scale": "4"},
    {"width_px": 33},
    {"num_inference_steps": 0},
    {"speed": 1.0},
    {"from_picture": [1]},
    {"from_picture": {"image": "x"}},
    {"from_picture": asdict(FromPicture("x" * 300))},
    {"from_picture": asdict(FromPicture("x")) | {"denoising_strength": 7}},
    {"scheduler": ["Euler"]},
]


@pytest.mark.parametrize("changed", [*FOREIGN, "[" * 100_000, "[]", "no JSON"])
def test_odd_settings_in_a_png_are_told_in_a_line(sampler, tmp_path, changed):
    path = tmp_path / "odd.png"
    odd = sampler.settings(ASKED) | changed if isinstance(changed, dict) else changed
    labelled(path, odd if isinstance(odd, str) else json.dumps(odd))
    with pytest.raises(RunError) as told:
        sampler.redraw(path)
    assert "\n" not in str(told.value)


def test_steps_and_guidance_are_those_of_the_previews_unless_given(sampler):
    config = make_config(sampler.run, num_inference_steps=None, guidance_scale=None, seed=3)
    trained = sampler.run.read_config("train")
    assert config.num_inference_steps == trained["num_inference_steps"] == 2
    assert config.guidance_scale == trained["guidance_scale"]
    assert (
        make_config(sampler.run, {"batch_size": 2}, num_inference_steps=9).num_inference_steps == 9
    )


def test_the_suffix_is_added_unless_it_is_not_wanted(sampler):
    asked = {"num_inference_steps": 2, "prompts": "a turtle\n\na cat", "num_images": 2}
    with_it, without = (
        make_requests(make_config(sampler.run, add_suffix=add, **asked), sampler)
        for add in (True, False)
    )
    suffix = sampler.run.read_config("dataset")["suffix"]
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


def test_a_blocked_picture_is_labelled_and_off_is_only_by_asking(trained_run):
    run = trained_run
    strict_checker(run.model)
    sampler = Sampler(run)
    (image,) = sampler.draw([ASKED])
    assert is_blocked(image) and image.size == (32, 32) and np.asarray(image).std() > 0
    assert "safety checker: on" in str(sampler)
    assert is_blocked(sampler.draw([asked(model="base")])[0])
    bold = Sampler(run, safety_checker=False)
    assert not is_blocked(bold.draw([ASKED])[0]) and "safety checker: off" in str(bold)


def box_of(sampler, **given):
    box = PromptBox(sampler, CONFIG, "a turtle")
    for name, value in {"count": 1, "steps": 2, **given}.items():
        getattr(box, name).value = value
    return box


def test_the_box_brings_a_pictures_settings_back(sampler):
    box = box_of(sampler, seed=21, strength=0.5, scheduler="Euler", width=40, styled=False, count=2)
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
    before = set(sampler.run.samples.glob("*.png"))
    tuned.children[1].click()
    box.button.click()
    assert set(sampler.run.samples.glob("*.png")) == before  # the very same picture


def test_the_box_brings_back_more_steps_than_its_slider_had(sampler):
    request = asked(guidance_scale=20.0, width_px=16)
    request = replace(request, num_inference_steps=80)
    sampler.save(request, sampler.draw([request])[0])
    box = PromptBox(sampler, CONFIG, "else")
    box.history.children[0].children[1].click()
    assert (box.steps.value, box.guidance.value, box.width.value) == (80, 20.0, 16)


def test_what_is_changed_while_it_draws_is_for_the_next_drawing(sampler):
    box = box_of(sampler, seed=5)
    moves = sampler.pipeline.unet.register_forward_pre_hook(
        lambda *_: setattr(box.seed, "value", 77) or setattr(box.guidance, "value", 9.0)
    )
    box.button.click()
    moves.remove()
    saved = [read_json(path) for path in sampler.run.samples.glob("*.json")]
    assert sorted((s["model"], s["seed"], s["guidance_scale"]) for s in saved) == [
        ("base", 5, CONFIG.guidance_scale),
        ("tuned", 5, CONFIG.guidance_scale),
    ]


def test_every_width_of_the_slider_can_be_drawn(sampler):
    sampler.resolution_px = 40
    box = PromptBox(sampler, CONFIG, "a turtle")
    assert (box.width.min, box.width.step, box.height.min) == (24, 8, 24)


def test_fewer_are_drawn_at_once_where_memory_runs_out(sampler):
    """As a GPU would say it: more than two pictures, with and without words, do not fit."""
    sampler.device = replace(sampler.device, device=torch.device("meta"))  # no CPU, so in batches
    sizes = []

    def fits(_unet, given):
        sizes.append(len(given[0]))
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")

    sampler.pipeline.unet.register_forward_pre_hook(fits)
    requests, most = [replace(ASKED, seed=seed) for seed in range(5)], 4
    images = sampler.draw(requests)
    assert sizes == [10, 8, 4, 4, 4, 4, 2, 2]
    assert all(np.ptp(np.asarray(image)) for image in images) and len(images) == 5
    most = 1
    with pytest.raises(
        RunError, match="^out of memory at one picture of 32 x 32 px: draw it smaller"
    ):
        sampler.draw(requests)


def test_the_history_is_there_when_the_box_opens_again(sampler):
    box_of(sampler, seed=31, compare=False).button.click()
    samples, settings = sampler.run.samples, sampler.album.newest(1)[0][1]
    (samples / "foreign.png").write_bytes(b"no picture")
    (samples / "dangling.png").symlink_to("gone")
    (samples / "folder.png").mkdir()
    labelled(samples / "null.png", json.dumps(settings | {"prompt": None}))
    labelled(samples / "deep.png", "[" * 100_000)
    again = PromptBox(sampler, CONFIG, "else")
    assert [c.children[1].description for c in again.history.children] == ["tuned 31"]


def test_a_picture_of_before_the_model_was_trained_again_is_told(sampler):
    box_of(sampler, compare=False).button.click()
    file = next((sampler.run.model / "unet").glob("*.safetensors"))
    save_file(
        {name: 1.5 * weight for name, weight in load_file(file).items()}, file, {"format": "pt"}
    )
    write_manifest(sampler.run.model)
    box = PromptBox(Sampler(sampler.run), CONFIG, "else")
    box.history.children[0].children[1].click()
    assert box.prompt.value == "a turtle"
    assert "it was drawn with other weights than" in box.message.value


@pytest.fixture
def full_disk(sampler):
    """samples/ on a tmpfs of its own, with no room left."""
    samples = sampler.run.samples
    samples.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(samples)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is refused here: it wants root")
    filler = samples / "filler"
    try:
        filler.write_bytes(b"x" * shutil.disk_usage(samples).free)
        yield filler
    finally:
        subprocess.run(["umount", str(samples)], check=True)


def test_what_a_full_disk_does_not_keep_is_shown(sampler, full_disk):
    box = box_of(sampler, compare=False, count=2)
    box.button.click()
    told = box.message.value
    assert f"could not write {sampler.run.samples}" in told and "No space left on device" in told
    assert "free some space, and draw again. What was drawn is shown below" in told
    assert "run the notebook" not in told and not box.button.disabled
    (row,) = box.gallery.children
    assert len(row.children[1].children) == 2 and not box.history.children
    full_disk.unlink()
    box.button.click()
    assert "Kept in" in box.message.value and len(box.history.children) == 2


def test_the_box_draws_a_checkpoint(sampler):
    box = box_of(sampler, checkpoint="step-000002", seed=41)
    box.button.click()
    titles = [row.children[0].value for row in box.gallery.children]
    assert "Checkpoint of step 000002" in titles[0] and "Base" in titles[1]
    assert (sampler.run.samples / "a-turtle-step-000002-41.png").is_file()


def test_cancel_stops_a_drawing_from_another_thread(sampler):
    box = box_of(sampler, steps=60, seed=51, compare=False)
    begun = threading.Event()
    box.bar.observe(lambda change: begun.set(), "value")
    worker = threading.Thread(target=box.button.click)
    worker.start()
    assert begun.wait(60)
    box.cancel.click()
    worker.join()
    assert box.message.value == "Cancelled." and not box.button.disabled and box.cancel.disabled
    assert not list(sampler.run.samples.glob("*-51.png"))
    box.steps.value = 2
    box.button.click()
    assert "Kept in" in box.message.value


def test_a_cancelled_drawing_leaves_the_sampler_whole(sampler):
    def stop(_done, _steps):
        raise Cancelled

    with pytest.raises(Cancelled):
        sampler.draw([ASKED], progress=stop)
    assert np.array_equal(sampler.draw([ASKED])[0], sampler.draw([ASKED])[0])


def test_what_is_told_in_the_box_is_text(sampler):
    box = box_of(sampler, scheduler="DDIM")
    box._show("<img src=x>")
    assert "<img" not in box.message.value
