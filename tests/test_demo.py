"""The drawn world, and the tiny base model that knows its flat half."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, LCMScheduler

from helpers.config import DatasetConfig
from helpers.config.presets import DEMO_PROMPTS
from helpers.core.files import find_corruption
from helpers.demo.distill import boundary_scalings, distil, write_speed_lora
from helpers.demo.looks import LOOKS, apply_look, suffix
from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import HELD_OUT_PAIRS, SUFFIX, random_scene
from helpers.demo.shapes import ANIMALS, COLOURS, PLACES, THINGS
from helpers.demo.tokenizer import MAX_TOKENS, make_tokenizer
from helpers.host.device import pick_device
from helpers.models.families import Components, sd1
from helpers.models.licence import stated_licence
from helpers.models.lora import LORA_FILE, find_misfit, lora_change, read_lora
from helpers.models.objective import Ddpm
from helpers.models.pipeline import load_pipeline, sample_fast
from helpers.train.data import LatentDataset
from helpers.train.model import Denoiser
from helpers.train.validation_loss import ValidationLoss

UNSEEN = range(9_000_000, 9_000_024)
BASE, SPEED = "assets/tiny-sd", Path("assets/tiny-sd-lcm")


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


# the speed LoRA


def test_the_speed_lora_is_small_and_what_its_hashes_say():
    assert find_corruption(SPEED) is None
    assert sum(path.stat().st_size for path in SPEED.iterdir()) < 1e6
    assert stated_licence(str(SPEED)).name == "Apache 2.0"


def test_four_steps_by_the_speed_lora_are_near_sixteen_with_guidance_and_four_without_it_are_not():
    """By the pixels' mean difference, of the same noise and without guidance."""
    pipeline = sample_fast(load_pipeline(BASE, torch.float32))

    def drawn(steps, guidance):
        seeds = [torch.Generator().manual_seed(i) for i in range(len(DEMO_PROMPTS))]
        given = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": seeds}
        return np.stack(
            [np.asarray(i, float) for i in pipeline(list(DEMO_PROMPTS), **given).images]
        )

    guided, without = drawn(16, 4.0), drawn(4, 1.0)
    pipeline.load_lora_weights(SPEED, weight_name=LORA_FILE)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    fast = drawn(4, 1.0)
    assert np.abs(fast - guided).mean() < 0.6 * np.abs(without - guided).mean()


def test_distilling_gives_a_lora_of_the_base_and_the_same_one_again(base, tmp_path):
    first, again = (distil(Path(BASE), seed=0, steps=2, scenes=8) for _ in range(2))
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    weights = {f"unet.{name}": tensor for name, tensor in base.unet.state_dict().items()}
    assert find_misfit(first, weights) == ""
    assert any(lora_change(first, layer).any() for layer in first.alpha)
    write_speed_lora(first, tmp_path / "lcm")
    assert find_corruption(tmp_path / "lcm") is None
    assert read_lora(tmp_path / "lcm" / LORA_FILE).alpha == first.alpha


def test_the_boundary_conditions_are_those_of_diffusers_scheduler():
    timesteps = torch.tensor([0, 19, 499, 999])
    skip, out = LCMScheduler().get_scalings_for_boundary_condition_discrete(timesteps)
    ours = boundary_scalings(timesteps)
    assert torch.allclose(ours[0].flatten(), skip) and torch.allclose(ours[1].flatten(), out)
