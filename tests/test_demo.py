"""The drawn world, and the tiny base model that knows its flat half."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from helpers.config import DatasetConfig
from helpers.config.presets import DEMO_PROMPTS
from helpers.demo.looks import LOOKS, apply_look, suffix
from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import HELD_OUT_PAIRS, SUFFIX, random_scene
from helpers.demo.shapes import ANIMALS, COLOURS, PLACES, THINGS
from helpers.demo.tokenizer import MAX_TOKENS, make_tokenizer
from helpers.host.device import pick_device
from helpers.models.families import Components, sd1
from helpers.models.objective import Ddpm
from helpers.models.pipeline import load_pipeline
from helpers.train.data import LatentDataset
from helpers.train.model import Denoiser
from helpers.train.validation_loss import ValidationLoss

UNSEEN = range(9_000_000, 9_000_024)
BASE = "assets/tiny-sd"


@pytest.fixture(scope="module")
def base():
    return load_pipeline(BASE, torch.float32)


def pixels(paint):
    arrays = [np.asarray(paint(random_scene(seed))) for seed in UNSEEN]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_a_scene_is_its_seed():
    for paint in (paint_flat, paint_watercolour):
        first, again = (np.asarray(paint(random_scene(5))) for _ in range(2))
        assert np.array_equal(first, again)


def test_held_out_pairs_are_in_no_training_scene():
    assert not any(random_scene(seed).is_held_out for seed in range(3000))
    assert all(random_scene(seed, held_out=True).is_held_out for seed in range(100))
    assert {animal for _, animal in HELD_OUT_PAIRS} == set(ANIMALS)


def test_the_demos_prompts_are_held_out_pairs_of_the_drawn_world():
    pairs = {tuple(prompt.split()[1:3]) for prompt in DEMO_PROMPTS}
    assert pairs == set(HELD_OUT_PAIRS)


def test_the_suffix_of_the_notebooks_is_the_one_the_tokenizer_knows():
    assert DatasetConfig().suffix == SUFFIX


def test_every_word_is_one_token_and_the_longest_prompt_fits():
    tokenizer = make_tokenizer()
    captions = [random_scene(seed, held_out=None).caption + SUFFIX for seed in range(500)]
    for caption in captions:
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(caption.split()) + 2 <= MAX_TOKENS
    words = {word for caption in captions for word in caption.split()}
    assert set(COLOURS) | set(ANIMALS) | set(THINGS) <= words
    assert {word for place in PLACES for word in place.split()} <= words


def test_a_look_is_its_name_and_unlike_the_plain_scene_and_other_kinds():
    scene = np.asarray(paint_flat(random_scene(5)))
    worn = [apply_look(scene, look).astype(int) for look in range(len(LOOKS))]
    assert all(np.array_equal(apply_look(scene, look), worn[look]) for look in (0, 7))
    for look, picture in enumerate(worn):
        assert np.abs(picture - scene).mean() > 10  # of 255
        for other in range(look):
            if LOOKS[other][1] != LOOKS[look][1]:
                assert np.abs(picture - worn[other]).mean() > 5


def test_a_looks_words_are_one_token_each():
    tokenizer = make_tokenizer()
    for look in range(len(LOOKS)):
        assert len(tokenizer(suffix(look)).input_ids) == 5 + 2


def test_the_two_styles_show_the_same_scene_differently():
    flat, wet = pixels(paint_flat), pixels(paint_watercolour)
    paper = wet[:, :, :3, :].mean((1, 2, 3))
    assert (paper > 0.8).all()  # a margin of bright paper
    alike = torch.corrcoef(torch.stack([flat.mean(1).flatten(), wet.mean(1).flatten()]))[0, 1]
    assert 0.5 < alike < 0.95


@pytest.mark.parametrize("paint", [paint_flat, paint_watercolour])
def test_the_autoencoder_keeps_what_a_picture_shows(base, paint):
    seen = pixels(paint)
    with torch.no_grad():
        again = base.vae.decode(base.vae.encode(seen).latent_dist.mean).sample.clamp(-1, 1)
    error = ((again - seen) / 2).square().mean((1, 2, 3))
    assert float((-10 * torch.log10(error)).mean()) > 29  # dB


def test_the_base_knows_flat_scenes_and_not_watercolours(base):
    objective = Ddpm(DDPMScheduler.from_config(base.scheduler.config))
    model, losses = Denoiser.of(Components.of(sd1, base), with_text=False), []
    for paint in (paint_flat, paint_watercolour):
        captions = [random_scene(seed).caption for seed in UNSEEN]
        ids = base.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            latents = (
                base.vae.encode(pixels(paint)).latent_dist.mean * base.vae.config.scaling_factor
            )
            texts = base.text_encoder(ids).last_hidden_state
        assert 0.8 < float(latents.std()) < 1.2
        examples = LatentDataset(latents, {"encoder_hidden_states": texts})
        measure = ValidationLoss(examples, objective, 0, num_eval_samples=48)
        losses.append(measure(model, pick_device()))
    assert losses[0] < 0.06 and losses[1] > 3 * losses[0]


def test_the_base_minds_the_words(base):
    """The same noise with another colour gives another picture."""
    pictures = []
    for colour in ("blue", "yellow"):
        seed = torch.Generator().manual_seed(3)
        prompt = f"a {colour} frog on a green hill"
        images = base(prompt, num_inference_steps=10, generator=seed, output_type="np").images
        pictures.append(images[0].mean((0, 1)))
    assert pictures[0][2] > pictures[1][2]  # more blue
    assert pictures[0][0] < pictures[1][0]  # less red
