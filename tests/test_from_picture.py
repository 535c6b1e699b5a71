"""Drawing from a picture: image to image, inpainting and sketches, by every family, with one model in memory."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from helpers.core.errors import RunError
from helpers.core.run import Run
from helpers.inference.draw.fit_picture import (
    fit,
    fit_mask,
    rectangle_mask,
    share_cropped,
    size_for,
    to_white_lines,
)
from helpers.inference.draw.from_picture import FromPicture, PicturePipelines
from helpers.inference.draw.sampler import Request, Sampler, is_blocked
from helpers.inference.draw.schedulers import SCHEDULERS, make_scheduler
from helpers.models.families import family_of, read_settings
from helpers.models.pipeline import load_pipeline, sample_fast
from tests.bases import make_base, make_sdxl
from tests.conftest import ROOT, make_trained
from tests.test_families import TINY_XL
from tests.test_inference_draw import strict_checker

STEPS = 6


@pytest.fixture
def sampler(trained_run):
    return Sampler(trained_run)


FAMILIES = {
    "sd1": (make_base, {}, {}),
    "sd2": (make_base, {"is_v2": True, "prediction_type": "v_prediction"}, {}),
    "sdxl": (make_sdxl, {}, TINY_XL),
}


@pytest.fixture(scope="session", params=FAMILIES)
def family_folder(request, tmp_path_factory):
    """A workplace with a trained run of each family."""
    make, given, settings = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return make_trained(folder, make(folder / "base", **given), **settings)


@pytest.fixture
def of_family(family_folder, monkeypatch):
    monkeypatch.chdir(family_folder)
    return Sampler(Run("pictures"))


def painting(size=(32, 32), seed=0):
    """Soft colours with a dark round thing in the middle."""
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    box = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
    ImageDraw.Draw(image).ellipse(box, "#203040")
    return image


def asked(sampler, image, mask=None, denoise=0.6, **given):
    start = FromPicture(
        sampler.album.keep_input(image),
        sampler.album.keep_input(mask) if mask else "",
        denoising_strength=denoise,
    )
    given = {
        "num_inference_steps": STEPS,
        "width_px": image.width,
        "height_px": image.height,
    } | given
    return Request("a turtle", 4, **given, from_picture=start)


def pixels(sampler, request):
    return np.asarray(sampler.draw([request])[0], int)


def test_strength_0_is_the_picture_through_the_autoencoder(of_family):
    image, pipeline = painting(), of_family.pipeline
    with torch.no_grad():
        latents = pipeline.vae.encode(pipeline.image_processor.preprocess(image)).latent_dist.mean
        decoded = pipeline.vae.decode(latents).sample
    expected = pipeline.image_processor.postprocess(decoded)[0]
    for strength in (0, 0.1):  # a tenth of six steps is none
        assert np.array_equal(
            pixels(of_family, asked(of_family, image, denoise=strength)), expected
        )


def test_strength_1_is_text_to_image_within_what_the_schedule_leaves(of_family):
    """It begins with the same noise, to which the first timestep's share of the picture's latents is added."""
    image = painting()
    drawn = pixels(of_family, asked(of_family, image, denoise=1, scheduler="DDIM"))
    pipeline, latents = of_family.pipeline, of_family.pictures.encode(image)
    left = pipeline.scheduler.alphas_cumprod[pipeline.scheduler.timesteps[0]]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))

    def by_words(start):
        given = {"latents": start, "height": 32, "width": 32, "num_inference_steps": STEPS}
        return np.asarray(pipeline("a turtle", guidance_scale=4.0, **given).images[0], int)

    text = pixels(of_family, Request("a turtle", 4, num_inference_steps=STEPS, scheduler="DDIM"))
    assert np.array_equal(by_words(noise), text)
    with_what_is_left = by_words(left.sqrt() * latents + (1 - left).sqrt() * noise)
    assert np.abs(drawn - with_what_is_left).max() <= 1
    assert not np.array_equal(drawn, text)


@pytest.fixture(scope="module")
def tiny_sd():
    """The demo's base model, which has learnt to draw."""
    folder = ROOT / "assets/tiny-sd"
    settings = read_settings(folder)
    text = sample_fast(load_pipeline(str(folder), torch.float32))
    return PicturePipelines(family_of(settings), settings, text), dict(text.scheduler.config)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_more_is_denoised_the_less_is_kept_of_the_picture(tiny_sd, scheduler):
    pictures, config = tiny_sd
    image = painting((128, 128))
    through, apart = np.asarray(pictures.through_autoencoder(image), int), []
    for strength in (0.25, 0.5, 1.0):
        pictures.text.scheduler = make_scheduler(scheduler, config, 8)
        pipeline, given = pictures.image_to_image(image, strength, 1)
        seed = torch.Generator().manual_seed(1)
        drawn = pipeline("a red cat", num_inference_steps=8, generator=seed, **given).images[0]
        apart.append(np.abs(np.asarray(drawn, int) - through).mean())
    assert 0 < apart[0] < apart[1] < apart[2]


@pytest.mark.parametrize("strength", [0, 0.3, 0.9, 1])
def test_outside_a_mask_every_pixel_is_the_originals(of_family, strength):
    image, mask = painting(), rectangle_mask((0.3, 0.2, 0.8, 0.6), (32, 32))
    drawn = pixels(of_family, asked(of_family, image, mask, strength))
    inside = np.asarray(mask) > 0
    assert np.array_equal(drawn[~inside], np.asarray(image)[~inside])
    assert not np.array_equal(drawn[inside], np.asarray(image)[inside])
    other = pixels(of_family, asked(of_family, image, mask, strength, model="base"))
    assert strength == 0 or not np.array_equal(other, drawn)


def test_a_mask_that_is_white_all_over_is_text_to_image_at_strength_1(sampler):
    white = Image.new("L", (32, 32), 255)
    text = pixels(sampler, Request("a turtle", 4, num_inference_steps=STEPS))
    assert np.array_equal(pixels(sampler, asked(sampler, painting(), white, 1)), text)


def test_every_pixel_in_a_mask_is_drawn_however_thin_it_is(sampler):
    image = Image.new("RGB", (32, 32), "white")
    mask = Image.new("L", (32, 32))
    ImageDraw.Draw(mask).line((3, 0, 3, 31), 255)
    drawn = pixels(sampler, asked(sampler, image, mask, 1))
    assert (drawn[:, 3] < 250).any() and (np.delete(drawn, 3, axis=1) == 255).all()


def storages(modules):
    """The bytes of all parameters and buffers, each storage once."""
    found = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def modules_of(pipeline):
    return [m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)]


def test_text_image_to_image_and_inpainting_have_one_model_in_memory(of_family):
    text = of_family.pipeline
    before, kinds = storages(modules_of(text)), {id(m) for m in modules_of(text)}
    dtypes = {p.dtype for m in modules_of(text) for p in m.parameters()}
    image, mask = painting(), rectangle_mask((0, 0, 0.5, 1), (32, 32))
    for request in (asked(of_family, image), asked(of_family, image, mask)):
        of_family.draw([request])
    made = list(of_family.pictures._made.values())
    assert len(made) == 2
    assert storages(m for p in (text, *made) for m in modules_of(p)).keys() == before.keys()
    assert {id(m) for p in made for m in modules_of(p)} == kinds
    assert {p.dtype for m in modules_of(text) for p in m.parameters()} == dtypes


def test_half_precision_stays_half_precision(sampler):
    """`from_pipe` would cast all components to float32."""
    text = sampler.pipeline.to(torch.bfloat16)
    assert sampler.pictures.image_to_image(painting(), 0.5, 1)[0].unet.dtype == torch.bfloat16
    assert (
        sampler.pictures.inpainting(painting(), Image.new("L", (32, 32), 255), 0.5, 1)[0].vae
        is text.vae
    )
    assert text.unet.dtype == text.vae.dtype == text.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_saved_picture_is_drawn_again_to_the_same_bits(trained_run, is_masked):
    sampler = Sampler(trained_run)
    mask = rectangle_mask((0, 0, 0.5, 1), (48, 32)) if is_masked else None
    request = asked(sampler, painting((48, 32)), mask, 0.7, strength=0.75)
    image = sampler.draw([request])[0]
    path = sampler.save(request, image)
    with Image.open(path) as saved:
        settings = json.loads(saved.info["settings"])
        assert settings["from_picture"]["denoising_strength"] == 0.7
        assert saved.info["parameters"].endswith("Denoising strength: 0.7")
    assert sampler.album.has(sampler.settings(request))
    again = Sampler(trained_run)
    again.draw([Request("a cat", 1, num_inference_steps=2)])
    assert np.array_equal(again.redraw(path), image)
    kept = sampler.album.input_path(request.from_picture.image)
    kept.write_bytes(b"else")
    with pytest.raises(RunError, match="has changed, and a picture was drawn from it"):
        again.redraw(path)
    kept.unlink()
    with pytest.raises(RunError, match="is missing, and a picture was drawn from it"):
        again.redraw(path)


def test_a_blocked_picture_is_labelled_and_nothing_of_it_is_shown(trained_run):
    strict_checker(trained_run.model)
    sampler = Sampler(trained_run)
    mask = rectangle_mask((0, 0, 0.5, 1), (32, 32))
    for request in (asked(sampler, painting()), asked(sampler, painting(), mask)):
        assert is_blocked(sampler.draw([request])[0])


def test_a_picture_from_words_alone_is_saved_as_ever(sampler):
    assert "from_picture" not in sampler.settings(Request("a cat", 1))


def test_a_batch_draws_what_each_would_alone(sampler, monkeypatch):
    some = [asked(sampler, painting()) for _ in range(3)]
    some = [
        Request(
            r.prompt,
            i,
            num_inference_steps=4,
            width_px=32,
            height_px=32,
            from_picture=r.from_picture,
        )
        for i, r in enumerate(some)
    ]
    pipeline, given = sampler.pictures.image_to_image(painting(), 0.6, 3)
    together = pipeline(
        [r.prompt for r in some],
        num_inference_steps=4,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(r.seed) for r in some],
        **given,
    ).images
    sampler.pipeline.scheduler = pipeline.scheduler
    for one, request in zip(together, some, strict=True):
        assert np.abs(np.asarray(one, int) - pixels(sampler, request)).max() <= 2


def test_what_does_not_fit_together_is_told(sampler):
    image = painting()
    with pytest.raises(RunError, match="is 32 x 32 px and the drawing 48 x 32 px"):
        sampler.draw([asked(sampler, image, width_px=48)])
    with pytest.raises(RunError, match="is 16 x 16 px and the drawing 32 x 32 px"):
        sampler.draw([asked(sampler, image, Image.new("L", (16, 16), 255))])
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(RunError, match="give a number from 0 to 1"):
            FromPicture("", denoising_strength=strength)


# sketches


@pytest.fixture
def controlnet(of_family, tmp_path):
    """A ControlNet for the family's UNet, of random weights."""
    torch.manual_seed(0)
    pipeline = of_family.pipeline
    halvings = {
        "conditioning_embedding_out_channels": (8,) * len(pipeline.vae.config.block_out_channels)
    }
    model = ControlNetModel.from_unet(pipeline.unet, **halvings)
    for name, parameter in model.named_parameters():
        if "controlnet_" in name:  # zeros, until it is trained
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "scribble")
    return tmp_path / "scribble"


def sketch(size=(32, 32)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((4, 4, 28, 20), outline="black", width=2)
    return image


def by_sketch(sampler, image, scale=1.0):
    name = sampler.album.keep_input(image)
    start = FromPicture(name, controlnet=sampler.controlnet.hash, control_scale=scale)
    return Request("a turtle", 4, num_inference_steps=2, from_picture=start)


def test_a_controlnet_draws_by_a_sketch_and_at_scale_0_by_words_alone(of_family, controlnet):
    sampler = Sampler(of_family.run, controlnet=str(controlnet))
    words = pixels(sampler, Request("a turtle", 4, num_inference_steps=2))
    assert np.array_equal(pixels(sampler, by_sketch(sampler, sketch(), 0.0)), words)
    by_lines = pixels(sampler, by_sketch(sampler, sketch()))
    assert not np.array_equal(by_lines, words)
    inverted = Image.eval(sketch(), lambda level: 255 - level)
    assert np.array_equal(pixels(sampler, by_sketch(sampler, inverted)), by_lines)
    path = sampler.save(by_sketch(sampler, sketch()), Image.fromarray(by_lines.astype(np.uint8)))
    assert np.array_equal(sampler.redraw(path), by_lines)
    with pytest.raises(RunError, match="a ControlNet that is not loaded: set controlnet in more"):
        of_family.redraw(path)


def test_a_controlnets_memory_is_said_before_any_of_it_is_loaded(of_family, controlnet):
    (controlnet / "diffusion_pytorch_model.safetensors").unlink()
    sampler = Sampler(of_family.run, controlnet=str(controlnet))
    assert f"the ControlNet {controlnet} takes 0.0" in str(sampler) and "GB of memory" in str(
        sampler
    )
    sampler.draw([Request("a turtle", 4, num_inference_steps=1)])
    with pytest.raises(RunError, match="controlnet .* could not be loaded"):
        by_sketch(sampler, sketch())


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda t: dict(list(t.items())[1:]), "lacks 1 of the weights that its config.json needs"),
        (
            lambda t: t | {"conv_in.bias": t["conv_in.bias"] * torch.nan},
            "NaN or inf in conv_in.bias",
        ),
    ],
)
def test_a_controlnet_that_is_not_whole_is_told(of_family, controlnet, spoil, words):
    path = controlnet / "diffusion_pytorch_model.safetensors"
    save_file(spoil(load_file(path)), path)
    with pytest.raises(RunError, match=f"controlnet .* could not be loaded .*{words}"):
        by_sketch(Sampler(of_family.run, controlnet=str(controlnet)), sketch())


def test_a_controlnet_of_another_family_or_of_code_is_refused(of_family, controlnet, tmp_path):
    run = of_family.run
    config = json.loads((controlnet / "config.json").read_text())
    other = config | {"cross_attention_dim": 768}
    (controlnet / "config.json").write_text(json.dumps(other))
    with pytest.raises(
        RunError, match="cross_attention_dim 768 and this model .*: it belongs to another kind"
    ):
        Sampler(run, controlnet=str(controlnet))
    (controlnet / "config.json").write_text(json.dumps(config | {"_class_name": "T2IAdapter"}))
    with pytest.raises(RunError, match="that of a T2IAdapter, not of a ControlNetModel"):
        Sampler(run, controlnet=str(controlnet))
    (controlnet / "code.py").write_text("print('run')")
    with pytest.raises(RunError, match=r"holds code, code.py, which is not run"):
        Sampler(run, controlnet=str(controlnet))
    with pytest.raises(RunError, match="there is no such file or folder"):
        Sampler(run, controlnet=str(tmp_path / "nothing"))


# sizes and masks


@pytest.mark.parametrize(
    "given, size",
    [
        ((500, 500), (512, 512)),
        ((10_000, 10_000), (512, 512)),
        ((4000, 3000), (592, 440)),
        ((3000, 4000), (440, 592)),
        ((10_000, 100), (1024, 256)),
        ((1, 1), (512, 512)),
    ],
)
def test_a_picture_is_drawn_at_its_own_aspect(given, size):
    assert size_for(Image.new("L", given), 512) == size


def test_sides_are_multiples_of_8_at_any_resolution():
    for side in range(8, 200, 8):
        for given in ((10, 1), (4, 3), (1, 10)):
            width, height = size_for(Image.new("L", given), side)
            assert width % 8 == height % 8 == 0 and min(width, height) >= side / 2


def test_a_picture_that_fits_keeps_its_pixels_and_another_is_cropped_in_its_middle():
    assert np.array_equal(fit(painting(), (32, 32)), painting())
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    middle = np.asarray(fit(wide, (64, 64)))[:, 4:-4]
    assert (middle == (0, 0, 255)).all()
    assert share_cropped(wide, (64, 64)) == pytest.approx(2 / 3)
    assert fit(Image.new("RGB", (3, 5)), (32, 48)).size == (32, 48)


def test_a_mask_is_fitted_as_its_picture_is():
    picture = Image.new("RGB", (300, 100))
    mask = Image.new("L", (600, 200))
    ImageDraw.Draw(mask).rectangle((300, 0, 600, 200), 255)  # the right half
    fitted = np.asarray(fit_mask(mask, picture, (64, 64)))
    assert (fitted[:, :31] == 0).all() and (fitted[:, 33:] == 255).all()
    with pytest.raises(RunError, match="the mask is 100 x 100 px and the picture 300 x 100 px"):
        fit_mask(Image.new("L", (100, 100), 255), picture, (64, 64))
    with pytest.raises(RunError, match="has no white"):
        fit_mask(Image.new("L", (300, 100)), picture, (64, 64))


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.7, 1, 0.2)])
def test_an_empty_rectangle_is_told(box):
    with pytest.raises(RunError, match="has no white"):
        rectangle_mask(box, (32, 32))


def test_lines_are_white_on_black_whichever_they_were():
    lines = to_white_lines(sketch())
    assert lines.mode == "RGB" and lines.getpixel((0, 0)) == (0, 0, 0)
    assert np.array_equal(to_white_lines(lines), lines)
