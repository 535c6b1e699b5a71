"""The figures that 05 judges by."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import random_scene
from helpers.demo.tokenizer import make_tokenizer
from helpers.inference.draw.sampler import Sampler, blocked_label
from helpers.inference.judge.copies import CopyFinder
from helpers.inference.judge.encoders import ClipScore, ImageModel, make_builtin_encoder
from helpers.inference.judge.groups import Groups
from helpers.inference.judge.judgement import judge, measure_adherence
from helpers.inference.judge.style import StyleAxis, features, order_share, style_gain
from helpers.inference.judge.style_distance import mmd

SIDE_PX = 128


def paintings(first, count):
    return [paint_watercolour(random_scene(first + i), SIDE_PX) for i in range(count)]


@pytest.fixture(scope="module")
def art():
    """Watercolours to train on, to calibrate by, and that nobody has seen."""
    return paintings(8_000_000, 100), paintings(8_100_000, 30), paintings(8_200_000, 120)


def by_definition(x, y):
    """The unbiased squared MMD of the cubic kernel, pair by pair, as in Binkowski et al. 2018."""

    def mean(a, b, same):
        values = [
            (float(np.dot(p, q)) / len(p) + 1) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_mmd_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    for n, m, d, shift in ((5, 7, 3, 0.0), (20, 30, 26, 0.5), (40, 12, 64, 0.1)):
        x, y = rng.normal(size=(n, d)), rng.normal(shift, 1.2, size=(m, d))
        assert mmd(x, y).value == pytest.approx(by_definition(x, y), abs=1e-9)
        assert mmd(x.astype(np.float32), y.astype(np.float32)).value == pytest.approx(
            by_definition(x, y), abs=1e-5
        )


def test_the_interval_of_mmd_holds_the_value_and_zero_where_nothing_differs():
    rng = np.random.default_rng(1)
    same = mmd(rng.normal(size=(60, 8)), rng.normal(size=(50, 8)))
    apart = mmd(rng.normal(size=(60, 8)), rng.normal(1, 1, size=(50, 8)))
    assert same.low < 0 < same.high and same.low <= same.value <= same.high
    assert 0 < apart.low < apart.value < apart.high


def test_the_style_distance_lies_between_floor_and_ceiling(art):
    train, held_out, unseen = art
    flat = [paint_flat(random_scene(8_300_000 + i), SIDE_PX) for i in range(60)]
    half = [Image.blend(a, b, 0.5) for a, b in zip(flat, unseen[:60], strict=True)]
    found = judge(Groups(train, held_out, flat, half, flat)).metrics["kid"]
    assert found["floor"]["value"] < found["tuned"]["value"] < found["ceiling"]["value"]
    assert found["floor"]["high"] < found["ceiling"]["low"]


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file).convert("RGB")


def cropped(image, rng):
    """Nine tenths of each side, at any place, brought back to size."""
    side = round(0.9 * SIDE_PX)
    left, top = rng.integers(0, SIDE_PX - side + 1, 2)
    part = image.crop((left, top, left + side, top + side))
    return part.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("resized", 0.95), ("flipped", 0.95), ("jpeg", 0.95), ("cropped", 0.8), ("both", 0.8)],
)
def test_planted_copies_are_found(art, kind, wanted):
    train, held_out, _ = art
    rng = np.random.default_rng(0)
    change = {
        "resized": lambda image: image.resize((60, 72), Image.Resampling.BILINEAR),
        "flipped": ImageOps.mirror,
        "jpeg": jpeg,
        "cropped": lambda image: cropped(image, rng),
        "both": lambda image: cropped(ImageOps.mirror(image), rng),
    }[kind]
    finder = CopyFinder(train, held_out)
    pairs = finder.nearest([change(image) for image in train])
    found = [pair.train == pair.sample and pair.likeness > finder.threshold for pair in pairs]
    assert np.mean(found) >= wanted


def test_drawings_that_are_no_copies_raise_no_alarm(art):
    train, held_out, unseen = art
    finder = CopyFinder(train, held_out)
    alarms = [pair.likeness > finder.threshold for pair in finder.nearest(unseen)]
    assert np.mean(alarms) <= 0.01


def test_copies_among_samples_are_counted_and_shown_with_their_originals(art):
    train, held_out, unseen = art
    flat = [paint_flat(random_scene(8_300_000 + i), SIDE_PX) for i in range(20)]
    planted = [ImageOps.mirror(train[7]), cropped(train[30], np.random.default_rng(2))]
    groups = Groups(train, held_out, flat, [*unseen[:18], *planted], flat, probe=train[:4])
    copies = judge(groups).copies
    assert copies["share"] == pytest.approx(0.1)
    assert {(p["sample"], p["train"]) for p in copies["pairs"][:2]} == {(18, 7), (19, 30)}
    assert copies["probe"]["share"] == 1.0


def test_style_gain_orders_half_way_in_nearly_every_bootstrap(art):
    train, held_out, unseen = art
    flat = [paint_flat(random_scene(8_400_000 + i), SIDE_PX) for i in range(80)]
    blends = [
        [Image.blend(a, b, s) for a, b in zip(flat[:60], unseen[:60], strict=True)]
        for s in (0.3, 0.7)
    ]
    axis = StyleAxis.between(*(np.stack([features(i) for i in g]) for g in (flat[::2], train)))
    groups = [
        axis.place(np.stack([features(i) for i in g])) for g in (flat[1::2], *blends, held_out)
    ]
    assert order_share(*groups) >= 0.95
    assert order_share(*groups[::-1]) == 0


def test_blocked_samples_are_counted_and_compared_to_nothing(art):
    train, held_out, unseen = art
    flat = [paint_flat(random_scene(8_300_000 + i), SIDE_PX) for i in range(20)]
    clean = judge(Groups(train, held_out, flat, unseen[:20], flat))
    label = blocked_label((SIDE_PX, SIDE_PX))
    some = judge(Groups(train, held_out, flat, [*unseen[:20], label], flat))
    assert some.blocked == 1 and some.style_gain == clean.style_gain


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A real CLIP of random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = small | ids | {"vocab_size": len(tokenizer)}
    vision = small | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def test_an_image_model_judges_beside_the_built_in_figures(art, clip_folder):
    train, held_out, unseen = art
    flat = [paint_flat(random_scene(8_300_000 + i), SIDE_PX) for i in range(20)]
    encoder = ImageModel(str(clip_folder))
    assert np.allclose(np.linalg.norm(encoder(train[:3]), axis=1), 1, atol=1e-5)
    judged = judge(Groups(train[:30], held_out, flat, unseen[:20], flat), encoder)
    found = judged.encoders[str(clip_folder)]
    assert found["style_gain"]["low"] <= found["style_gain"]["value"] <= found["style_gain"]["high"]
    assert found["floor"]["value"] < found["ceiling"]["value"]


def test_clip_score_is_the_cosine_of_picture_and_prompt(clip_folder, art):
    clip = ClipScore(str(clip_folder))
    prompts = ["a red cat", "a blue house at night"]
    scores = clip.score(art[0][:2], prompts)
    given = clip.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = clip.processor(images=art[0][:2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        ids, mask = given["input_ids"], given["attention_mask"]
        output = clip.model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    cosine = (output.image_embeds * output.text_embeds).sum(-1).clamp(min=0)
    assert np.allclose(scores, 100 * cosine.numpy(), atol=1e-3)


def test_prompt_adherence_is_measured_or_left_out_with_a_reason(trained_run, clip_folder):
    sampler = Sampler(trained_run)
    flat = [paint_flat(random_scene(i), SIDE_PX) for i in range(8)]
    groups = Groups(flat, flat, flat, flat[::-1], flat)
    left_out = measure_adherence(InferenceConfig(run="pictures"), sampler, groups)
    assert "set clip_model" in left_out["left_out"]
    config = InferenceConfig(run="pictures", clip_model=str(clip_folder))
    found = measure_adherence(config, sampler, groups)
    assert found["change_low"] <= found["change"] <= found["change_high"]


def test_a_model_that_is_not_there_is_told_with_names_of_some_that_are(tmp_path):
    with pytest.raises(RunError, match="openai/clip-vit-large-patch14"):
        ImageModel(str(tmp_path))


def test_the_built_in_encoder_is_scaled_by_the_training_pictures(art):
    seen = make_builtin_encoder(art[0])(art[0])
    assert np.abs(seen).max() <= 5 and np.abs(seen.mean(0)).max() < 0.3
    gain = style_gain(seen[:5, 0], seen[5:9, 0], seen[9:, 0] + 9)
    assert gain.low <= gain.value <= gain.high
