"""Families of base models: told by their settings, trained as diffusers' scripts do, and one file each."""

import json
import shutil
import sys

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionXLPipeline,
)
from diffusers.training_utils import compute_snr
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.nn import functional as F

from helpers.config import InferenceConfig, TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.records import read_metadata
from helpers.dataset.takedown import remove
from helpers.figures.pictures import open_rgb
from helpers.host.device import Device, pick_device
from helpers.inference.draw.sampler import Request, Sampler
from helpers.inference.share import one_file
from helpers.inference.share.one_file import export
from helpers.models import families
from helpers.models.families import family_of, read_settings
from helpers.train.buckets import Crop
from helpers.train.buckets import _pixels as pixels_of
from helpers.train.loss import diffusion_loss
from helpers.train.model import load_components, make_trainable, read_base
from helpers.train.prepare import prepare
from helpers.train.resources import CUDA_CONTEXT_GB, refuse_too_large
from helpers.train.trainer import train
from tests.bases import full_size_sdxl, make_base, make_sdxl
from tests.conftest import SMALL_TRAINING, lines, make_dataset, photograph

TINY_XL = {"method": "lora", "rank": 4, "resolution_px": 32}


def settings(base, **given):
    return configure(TrainConfig, SMALL_TRAINING | {"base_model": str(base)} | given)


@pytest.fixture
def sdxl(tmp_path):
    return make_sdxl(tmp_path / "sdxl")


def test_a_family_is_told_by_the_bases_own_settings(tmp_path, sdxl):
    made = {
        "Stable Diffusion 1": make_base(tmp_path / "one"),
        "Stable Diffusion 2": make_base(tmp_path / "two", is_v2=True),
        "SDXL": sdxl,
    }
    for name, folder in made.items():
        assert family_of(read_settings(folder)).NAME == name


@pytest.mark.parametrize("texts", [["a cat"], ["", "a red cat on a hill"]])
@pytest.mark.parametrize("zeros", [True, False])
def test_texts_are_encoded_as_the_pipeline_encodes_them(tmp_path, texts, zeros):
    base = make_sdxl(tmp_path / "base", zeros=zeros)
    parts = load_components(str(base), pick_device())
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    ids = parts.family.tokenize(list(parts.tokenizers.values()), texts)
    ours = parts.family.encode_text(list(parts.text_encoders.values()), ids, parts.index)
    for i, text in enumerate(texts):
        # the negative prompt None is what the pipeline makes of no words
        states, no_words, pooled, no_pooled = pipeline.encode_prompt(text, negative_prompt=None)
        states, pooled = (states, pooled) if text else (no_words, no_pooled)
        assert torch.allclose(ours["encoder_hidden_states"][i], states[0], atol=1e-6)
        assert torch.allclose(ours["text_embeds"][i], pooled[0], atol=1e-6)


def test_an_sdxl_lora_trains_and_its_model_draws(dataset, sdxl):
    list(train(settings(sdxl, **TINY_XL), dataset))
    pipeline = StableDiffusionXLPipeline.from_pretrained(dataset.model, add_watermarker=False)
    picture = pipeline("a cat", height=32, width=32, num_inference_steps=2).images[0]
    assert picture.size == (32, 32)


def test_05_draws_the_base_the_lora_and_each_checkpoint_of_an_sdxl(dataset, sdxl):
    list(train(settings(sdxl, **TINY_XL, learning_rate=0.05), dataset))
    sampler = Sampler(dataset)
    before = {k: v.clone() for k, v in sampler.weights.all.items()}

    def drawn(model, strength=1.0):
        request = Request("a cat", 1, num_inference_steps=2, model=model, strength=strength)
        return np.asarray(sampler.draw([request])[0], int)

    tuned, base = drawn("tuned"), drawn("base")
    plain = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    given = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    alone = plain("a cat", generator=torch.Generator().manual_seed(1), **given).images[0]
    assert np.abs(base - np.asarray(alone, int)).max() <= 1
    assert np.abs(tuned - base).max() > 4
    assert np.abs(drawn("step-000004") - tuned).max() <= 1
    assert np.array_equal(drawn("tuned", 0.0), base)
    assert np.array_equal(drawn("tuned"), tuned)
    for name, weight in sampler.weights.all.items():  # mapped from its file again, to the bit
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize("zeros", [True, False])
def test_previews_take_the_empty_prompt_as_the_base_does(tmp_path, zeros):
    parts = load_components(str(make_sdxl(tmp_path / "base", zeros=zeros)), pick_device())
    assert parts._pipeline().config.force_zeros_for_empty_prompt == zeros


@pytest.mark.soak
def test_an_older_diffusers_reads_back_both_text_encoders(dataset, sdxl, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", "0.39.0")
    more = {"train_text_encoder": True, "text_encoder_lr": 0.01, "learning_rate": 0.05}
    list(train(settings(sdxl, **TINY_XL, **more), dataset))
    assert len(export(dataset)) == 4


@pytest.mark.parametrize("kind", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.soak)])
def test_each_file_of_an_sdxl_lora_draws_what_was_trained(dataset, tmp_path, kind):
    base = make_sdxl(tmp_path / "base", prediction_type=kind)
    more = {"train_text_encoder": True, "text_encoder_lr": 0.01, "learning_rate": 0.05}
    list(train(settings(base, **TINY_XL, **more), dataset))
    files = {path.name: path for path in export(dataset)}
    assert files.keys() == {
        *("pictures.safetensors", "pictures-lora.safetensors", "pictures-lora-blocks.safetensors"),
        "pytorch_lora_weights.safetensors",
    }

    def drawn(pipeline):
        source, given = torch.Generator().manual_seed(3), {"height": 32, "width": 32}
        options = {"num_inference_steps": 2, "output_type": "np", "generator": source}
        return pipeline("a red cat", **given, **options).images[0]

    trained = drawn(StableDiffusionXLPipeline.from_pretrained(dataset.model))
    one = StableDiffusionXLPipeline.from_single_file(
        files["pictures.safetensors"], config=str(dataset.model), local_files_only=True
    )
    assert np.abs(drawn(one) - trained).max() < 1e-4
    for name in files.keys() - {"pictures.safetensors"}:
        pipeline = StableDiffusionXLPipeline.from_pretrained(base)
        assert np.abs(drawn(pipeline) - trained).max() > 1e-3
        pipeline.load_lora_weights(files[name].parent, weight_name=name)
        assert np.abs(drawn(pipeline) - trained).max() < 1e-4
    names = {name: {key.split("_blocks_")[0] for key in load_file(files[name])} for name in files}
    assert any("lora_unet_input" in key for key in names["pictures-lora.safetensors"])
    assert any("lora_unet_down" in key for key in names["pictures-lora-blocks.safetensors"])
    assert any("lora_te2_text_model" in key for key in names["pictures-lora.safetensors"])


@pytest.mark.soak
def test_the_whole_model_is_written_as_one_file_where_it_is_asked_for(dataset, sdxl, monkeypatch):
    list(train(settings(sdxl, **TINY_XL), dataset))
    monkeypatch.setattr(one_file, "MAX_BYTES", 1e6)
    whole = dataset.export / "pictures.safetensors"
    assert whole not in export(dataset) and not whole.exists()
    assert whole in export(dataset, InferenceConfig(run="pictures", one_file="yes"))
    assert whole not in export(dataset, InferenceConfig(run="pictures", one_file="no"))


def test_a_vae_of_ones_own_takes_the_place_of_the_bases(dataset, sdxl, tmp_path):
    own = AutoencoderKL.from_pretrained(sdxl, subfolder="vae")
    torch.nn.init.normal_(own.decoder.conv_out.bias)
    own.register_to_config(force_upcast=False)
    own.save_pretrained(tmp_path / "own-vae")
    known, device = tmp_path / "hashes.json", pick_device()
    given = load_components(str(sdxl), device, known_hashes=known, vae=str(tmp_path / "own-vae"))
    base = load_components(str(sdxl), device, known_hashes=known)
    assert (
        given.hashes["vae"]
        != base.hashes["vae"]
        == load_components(str(sdxl), device).hashes["vae"]
    )
    list(train(settings(sdxl, **TINY_XL, vae=str(tmp_path / "own-vae")), dataset))
    found = AutoencoderKL.from_pretrained(dataset.model, subfolder="vae")
    assert torch.equal(found.decoder.conv_out.bias, own.decoder.conv_out.bias)
    more = TINY_XL | {"max_steps": TINY_XL.get("max_steps", 4) + 2}
    with pytest.raises(
        RunError, match="VAE .* was another"
    ):  # the checkpoints are of the other one
        list(train(settings(sdxl, **more), dataset))
    moved = shutil.move(tmp_path / "own-vae", tmp_path / "moved")  # known by its weights
    assert [step.step for step in train(settings(sdxl, **more, vae=str(moved)), dataset)][
        -1
    ] == more["max_steps"]


def test_a_vae_that_is_none_or_of_another_latent_space_is_refused(dataset, sdxl, tmp_path):
    small = AutoencoderKL.load_config(sdxl / "vae")
    AutoencoderKL.from_config(small, scaling_factor=0.18215).save_pretrained(tmp_path / "sd1")
    levels = {"block_out_channels": [8] * 5, "down_block_types": ["DownEncoderBlock2D"] * 5}
    levels |= {"up_block_types": ["UpDecoderBlock2D"] * 5}
    AutoencoderKL.from_config(small, **levels).save_pretrained(tmp_path / "deep")
    for place, words in (
        (tmp_path / "none", "no such file"),
        (sdxl / "unet", "that of a UNet2DConditionModel"),
        (tmp_path / "sd1", r"scaling factor of 0.18215, and those of the base's own VAE 0.13025"),
        (tmp_path / "deep", r"downsampling of 16, and those of the base's own VAE \d"),
    ):
        with pytest.raises(RunError, match=rf"vae .*{words}.*: give a hub id or a folder with an"):
            list(train(settings(sdxl, **TINY_XL, vae=str(place)), dataset))


def test_a_post_taken_down_from_an_sdxls_dataset_is_known_to_its_model(dataset, sdxl):
    list(train(settings(sdxl, **TINY_XL), dataset))
    gone = read_metadata(dataset.split_metadata("train"))[0][0].rpartition("_")[0]
    said = str(remove(dataset, gone))
    assert "was trained on it" in said
    with pytest.raises(RunError, match="dataset"):
        list(train(settings(sdxl, **TINY_XL, max_steps=6), dataset))


def script_loss(unet, schedule, batch, gamma):
    """The loss of diffusers' train_text_to_image_lora_sdxl.py, and of its script for SD where there are no sizes."""
    noisy = schedule.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
    added = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
    predicted = unet(
        noisy,
        batch["timesteps"],
        batch["encoder_hidden_states"],
        added_cond_kwargs=added or None,
        return_dict=False,
    )[0]
    is_v = schedule.config.prediction_type == "v_prediction"
    target = batch["noise"]
    if is_v:
        target = schedule.get_velocity(batch["latents"], batch["noise"], batch["timesteps"])
    if not gamma:
        return F.mse_loss(predicted.float(), target.float(), reduction="mean")
    snr = compute_snr(schedule, batch["timesteps"])
    weights = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1) if is_v else weights / snr
    loss = F.mse_loss(predicted.float(), target.float(), reduction="none")
    return (loss.mean(dim=[1, 2, 3]) * weights).mean()


BASES = {
    "sd1": lambda folder, kind: make_base(folder, prediction_type=kind),
    "sd2": lambda folder, kind: make_base(folder, is_v2=True, prediction_type=kind),
    "sdxl": lambda folder, kind: make_sdxl(folder, prediction_type=kind),
}


@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("family", BASES)
def test_loss_and_gradients_of_a_step_are_those_of_diffusers_script(tmp_path, family, kind, gamma):
    parts = load_components(str(BASES[family](tmp_path / "base", kind)), pick_device())
    config = settings(tmp_path / "base", method="full")
    model = make_trainable(parts, config, torch.float32)
    source = torch.Generator().manual_seed(1)
    batch = {
        "latents": torch.randn(4, 4, 16, 16, generator=source),
        "noise": torch.randn(4, 4, 16, 16, generator=source),
        "timesteps": torch.tensor([3, 300, 700, 990]),
        **parts.family.example_conditioning(parts.denoiser, 4),
    }
    losses = diffusion_loss(model, parts.objective, **batch)
    ours = (losses * parts.objective.loss_weights(batch["timesteps"], gamma)).mean()
    schedule = DDPMScheduler.from_pretrained(tmp_path / "base", subfolder="scheduler")
    theirs = script_loss(parts.denoiser, schedule, batch, gamma)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    weights = list(model.trained_weights().values())
    for one, other in zip(
        torch.autograd.grad(ours, weights, retain_graph=True, allow_unused=True),
        torch.autograd.grad(theirs, weights, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.fixture
def full_sdxl(tmp_path, sdxl):
    return str(full_size_sdxl(tmp_path / "full", sdxl))


T4 = Device(torch.device("cpu"), "fp16", "sdpa", (), captures=True)


def test_t4_xl_takes_less_than_8_gb_with_previews_and_the_models_reading_back(dataset, full_sdxl):
    config = configure(TrainConfig, {"run": "pictures", "preset": "t4-xl", "base_model": full_sdxl})
    counted = refuse_too_large(config, dataset, T4)
    assert 7 < counted.memory_gb + CUDA_CONTEXT_GB < 8
    assert counted.trained == 11_612_160 and counted.model_gb == pytest.approx(6.94, abs=0.01)


@pytest.mark.soak
def test_all_of_sdxl_is_refused_with_the_memory_that_it_takes(dataset, full_sdxl):
    given = {"run": "pictures", "preset": "t4-xl", "base_model": full_sdxl, "method": "full"}
    with pytest.raises(RunError, match=r"needs about [45]\d\.\d GB of memory and there are"):
        refuse_too_large(configure(TrainConfig, given), dataset, T4)


WRONG = {
    "a FLUX folder": (
        lambda index: index.update(_class_name="FluxPipeline"),
        "it is a FluxPipeline",
    ),
    "a refiner": (
        lambda index: index.update(_class_name="StableDiffusionXLImg2ImgPipeline"),
        "it is a StableDiffusionXLImg2ImgPipeline",
    ),
    "one encoder missing": (
        lambda index: index.update(text_encoder_2=[None, None]),
        "names no text_encoder_2",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_another_kind_of_model_is_refused_by_its_small_files_alone(tmp_path, sdxl, what):
    change, words = WRONG[what]
    index = json.loads((sdxl / "model_index.json").read_text())
    change(index)
    (sdxl / "model_index.json").write_text(json.dumps(index))
    for path in sdxl.rglob("*.safetensors"):  # nothing else is opened
        path.unlink()
    with pytest.raises(RunError, match=words):
        read_base(str(sdxl))


def test_a_lora_is_no_base_and_fits_its_own_familys_alone(dataset, sdxl, tiny_base):
    list(train(settings(sdxl, **TINY_XL), dataset))
    lora = dataset.model / "lora/pytorch_lora_weights.safetensors"
    for place in (lora, lora.parent):
        with pytest.raises(RunError, match=r"base_model .*: give a hub id .* one-file"):
            read_base(str(place))
    # a training of one family does not go on with the other's base
    with pytest.raises(RunError, match="the base model was another; .*: give this one a run name"):
        list(train(settings(tiny_base, **TINY_XL, max_steps=6), dataset))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"in_channels": 9}, "in_channels 9"),
        ({"cross_attention_dim": 1280}, "cross_attention_dim 1280"),
        ({"projection_class_embeddings_input_dim": 2560}, "refiner"),
    ],
)
def test_an_inpainting_unet_or_another_ones_is_refused(sdxl, given, words):
    path = sdxl / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))
    with pytest.raises(RunError, match=words):
        read_base(str(sdxl))


def test_sizes_are_those_of_the_crop_that_the_batch_holds(tmp_path):
    path = tmp_path / "wide.png"
    Image.effect_noise((96, 48), 40).convert("RGB").save(path)
    crop = Crop(side_px=32, crops=3, flip=True)
    pixels = crop.augmentations(path)
    # resized to 64 x 32: the crops begin at 16, 0 and 32, and mirrored at 64 - 32 - left
    whole = (48, 96)
    wanted = [(16, 16), (0, 32), (32, 0)]
    found = crop.places(path)
    assert len(found) == len(pixels) == 6
    for i, (left, mirrored) in enumerate(wanted):
        assert found[2 * i] == (whole, (0, left), (32, 32))
        assert found[2 * i + 1] == (whole, (0, mirrored), (32, 32))
    with Image.open(path) as image:
        resized = pixels_of(image.resize((64, 32), Image.Resampling.LANCZOS))
    mirrored = resized.flip(-1)
    for i, (_, (top, left), (down, across)) in enumerate(found):
        seen = (mirrored if i % 2 else resized)[:, top : top + down, left : left + across]
        assert (seen - pixels[i]).abs().mean() < 0.02


def test_each_batch_holds_the_sizes_of_its_pictures_in_buckets_crops_and_mirrored(
    workplace, tmp_path, sdxl
):
    shapes = [(160, 96), (96, 160), (120, 118), (200, 90)] * 3
    for i, shape in enumerate(shapes):
        path = photograph(tmp_path / f"in/{i}.png", i, size=shape)
        path.with_suffix(".txt").write_text(f"thing {i}")
    run = make_dataset("pictures", tmp_path / "in")
    more = {"aspect_ratio_buckets": True, "random_flip": True, "crops_per_image": 2}
    config = settings(sdxl, **TINY_XL | {"resolution_px": 64}, **more, caption_dropout=0.5)
    training, _ = prepare(config, run, pick_device())
    parts, seen = training.components, []
    for step in range(12):
        names = training.data.names(step)[0]
        batch = training.data.get_batch(step)[0]
        for name, latents, sizes in zip(names, batch["latents"], batch["time_ids"], strict=True):
            height, width, top, left, down, across = (int(number) for number in sizes)
            assert latents.shape[1:] == (down // 4, across // 4)
            if "sample" in name:  # of the base, for prior preservation
                assert (height, width, top, left, down, across) == (64, 64, 0, 0, 64, 64)
                seen.append("prior")
                continue
            image = open_rgb(run.split("train") / name)
            assert image.size == (width, height)
            scale = max(across / width, down / height)
            resized = image.resize((round(width * scale), round(height * scale)), 1)
            errors = []
            for mirrored in (resized, ImageOps.mirror(resized)):
                cut = mirrored.crop((left, top, left + across, top + down))
                encoded = parts.family.encode_image(parts.vae, pixels_of(cut)[None])[0]
                errors.append(float((encoded - latents).abs().mean() / latents.std()))
            assert min(errors) < 0.1
            seen.append("mirrored" if errors[1] < errors[0] else "as it is")
    training.log.close()
    assert {"prior", "mirrored", "as it is"} == set(seen)


FLOW = '''
"""Rectified flow (Liu et al. 2022, arXiv:2209.03003) on the small UNet of Stable Diffusion 1: a family for a test."""

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

from helpers.models.families.sd1 import *
from helpers.models.families.sd1 import text_config


class FlowPipeline(StableDiffusionPipeline):
    @torch.no_grad()
    def __call__(self, prompt_embeds, height, width, num_inference_steps, generator, output_type="pil", **_):
        texts = prompt_embeds
        side = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (1, self.unet.config.in_channels, height // side, width // side)
        x = torch.cat([torch.randn(shape, generator=g) for g in generator]).to(texts.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, texts).sample, t, x).prev_sample
        images = x if output_type == "latent" else self.vae.decode(x / self.vae.config.scaling_factor).sample
        if output_type != "latent":
            images = self.image_processor.postprocess(images, output_type=output_type)
        return type("Output", (), {"images": images})


NAME, PIPELINE = "a flow", FlowPipeline
SCHEDULER = SAMPLER = FlowMatchEulerDiscreteScheduler


def recognises(settings):
    return settings["model_index"].get("_class_name") == "FlowPipeline"


def check(settings):
    pass


@dataclass(frozen=True)
class Flow:
    num_timesteps: int

    def sigma(self, timesteps):
        return ((timesteps + 1) / self.num_timesteps).view(-1, 1, 1, 1)

    def add_noise(self, latents, noise, timesteps):
        return torch.lerp(latents, noise, self.sigma(timesteps))

    def target(self, latents, noise, timesteps):
        return noise - latents

    def loss_weights(self, timesteps, gamma):
        return torch.ones(len(timesteps), device=timesteps.device)


def objective(scheduler):
    return Flow(scheduler.config.num_train_timesteps)
'''


@pytest.fixture
def flow(tmp_path, monkeypatch):
    """A base of a family that the project does not know, and its one file."""
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "more")])
    (tmp_path / "more").mkdir()
    (tmp_path / "more/flow.py").write_text(FLOW)
    base = make_base(tmp_path / "flow")
    index = json.loads((base / "model_index.json").read_text())
    index |= {
        "_class_name": "FlowPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (base / "model_index.json").write_text(json.dumps(index))
    FlowMatchEulerDiscreteScheduler().save_pretrained(base / "scheduler")
    yield base
    sys.modules.pop("helpers.models.families.flow", None)


def test_a_new_family_is_one_file_and_its_validation_loss_falls(dataset, flow):
    given = {"max_steps": 60, "learning_rate": 2e-3, "lr_warmup_steps": 0, "snr_gamma": 5.0}
    given |= {"save_every_steps": 60, "validate_every_steps": 60, "preview_every_steps": 60}
    list(train(settings(flow, method="full", train_batch_size=4, **given), dataset))
    losses = [row["held_out_loss"] for row in lines(dataset.train_log) if "held_out_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert (
        json.loads((dataset.model / "model_index.json").read_text())["_class_name"]
        == "FlowPipeline"
    )
