"""Base models as people have them: one file, a folder that holds one, variants alone; each trains to the same loss."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from helpers import single_file
from helpers.device import load_pipeline, pick_device
from helpers.foreign import model_folder
from helpers.inference.export import original
from helpers.inference.layout import unet_to_original, vae_to_original
from helpers.train.loop import train
from helpers.train.model import fingerprint, load_parts
from tests.test_train import settings

WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A Hugging Face home of the test's own."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    return tmp_path / "hf"


def one_file(base: Path, folder: Path, dtype=torch.float32, extra=None, metadata=None) -> Path:
    """A base as one file, with its settings and its tokenizer beside it, since it has not v1's shapes."""
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in original(base).items()}
    folder.mkdir(parents=True)
    path = folder / "anime-v3.safetensors"
    save_file({k: t.contiguous() for k, t in (state | (extra or {})).items()}, path, metadata)
    for part in ("unet", "vae", "text_encoder"):
        (folder / part).mkdir()
        shutil.copy(base / part / "config.json", folder / part)
    shutil.copytree(base / "tokenizer", folder / "tokenizer")
    return path


def variants_alone(base: Path, folder: Path, variant="fp16") -> Path:
    shutil.copytree(base, folder)
    for path in list(folder.glob("*/*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))
    return folder


def in_half(base: Path, folder: Path) -> Path:
    load_pipeline(str(base), torch.float16).save_pretrained(folder)
    return folder


def test_one_file_holds_what_the_folder_does(tmp_path, tiny_base):
    path = one_file(tiny_base, tmp_path / "one")
    folder, single = (load_parts(str(p), pick_device()) for p in (tiny_base, path))
    assert fingerprint(single.unet) == fingerprint(folder.unet)
    kinds = single.fingerprints()
    kinds.pop("noise schedule"), folder.fingerprints()
    assert {k: folder.fingerprints()[k] for k in kinds} == kinds
    assert torch.allclose(
        single.noise_scheduler.alphas_cumprod, folder.noise_scheduler.alphas_cumprod
    )
    assert single.tokenizer("a cat").input_ids == folder.tokenizer("a cat").input_ids


def test_a_file_is_converted_once_wherever_it_lies(tmp_path, tiny_base):
    path = one_file(tiny_base, tmp_path / "one")
    first = model_folder(str(path))
    made = (first / f"{WEIGHTS}.safetensors").stat().st_mtime_ns
    path.parent.rename(tmp_path / "moved")
    for given in (tmp_path / "moved", tmp_path / "moved/anime-v3.safetensors"):
        assert model_folder(str(given)) == first
    assert (first / f"{WEIGHTS}.safetensors").stat().st_mtime_ns == made
    other = load_file(tmp_path / "moved/anime-v3.safetensors")
    name = "model.diffusion_model.out.2.bias"
    save_file(other | {name: other[name] + 1}, tmp_path / "moved/anime-v3.safetensors")
    assert model_folder(str(tmp_path / "moved")) != first


SHAPES = {
    "one fp32 file": lambda base, to: one_file(base, to),
    "one fp16 file": lambda base, to: one_file(base, to, torch.float16),
    "a folder with one file": lambda base, to: one_file(base, to).parent,
    "a folder": lambda base, to: shutil.copytree(base, to),
    "a folder in fp16": in_half,
    "fp16 variants alone": lambda base, to: variants_alone(in_half(base, to / "half"), to / "v"),
}


def test_every_shape_of_a_base_trains_to_the_same_validation_loss(dataset, tiny_base, tmp_path):
    losses = {}
    for i, (name, make) in enumerate(SHAPES.items()):
        base = make(tiny_base, tmp_path / f"base-{i}")
        steps = list(train(settings(base, prior_share=0.0, preview_every_steps=100), dataset))
        losses[name] = [step.held_out_loss for step in steps if step.held_out_loss]
        dataset.folder.joinpath("checkpoints").rename(dataset.folder / f"checkpoints-{i}")
    whole = losses["a folder"]
    assert losses["one fp32 file"] == losses["a folder with one file"] == whole
    half = losses["a folder in fp16"]
    assert losses["one fp16 file"] == losses["fp16 variants alone"] == half
    assert half == pytest.approx(whole, rel=2e-3)  # of weights rounded to fp16


def v1_state() -> dict[str, torch.Tensor]:
    """All that Stable Diffusion v1 has, in its own names and shapes, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(single_file._V1_UNET)
        vae = AutoencoderKL.from_config(single_file._VAE)
        text = CLIPTextModel(CLIPTextConfig(**single_file._V1_TEXT))
        state = unet_to_original(unet.state_dict(), unet.config)
        state |= vae_to_original(vae.state_dict(), vae.config)
    words = {k.removeprefix("text_model."): t for k, t in text.state_dict().items()}
    return state | {f"cond_stage_model.transformer.text_model.{k}": t for k, t in words.items()}


def models(unet: dict, text: dict) -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(single_file._VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }


def test_all_weights_of_stable_diffusion_1_are_taken_by_name_and_shape():
    state = v1_state()
    assert state["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320, 1, 1)
    assert state["model.diffusion_model.output_blocks.11.1.norm.weight"].shape == (320,)
    ema = {f"model_ema.{i}": torch.empty(1) for i in range(200)}
    made = single_file.rename(state | ema, models(single_file._V1_UNET, single_file._V1_TEXT))
    assert {part: len(weights) for part, weights in made.items()} == {
        "unet": 686,
        "vae": 248,
        "text_encoder": 196,
    }
    without = {k: t for k, t in state.items() if "output_blocks.11.1.norm" not in k}
    with pytest.raises(ValueError, match="unet is not of this shape: .*norm.weight is missing"):
        single_file.rename(without, models(single_file._V1_UNET, single_file._V1_TEXT))


def open_clip_state(layers: int, width: int) -> dict[str, torch.Tensor]:
    """OpenCLIP's text encoder as Stable Diffusion 2 has it, without memory."""
    made = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (49408, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
        "logit_scale": (),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}"
        for name, shape in {
            "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
        }.items():  # fmt: skip
            made[f"{block}.{name}"] = shape
    return {f"cond_stage_model.model.{k}": torch.empty(v, device="meta") for k, v in made.items()}


def test_all_weights_of_stable_diffusion_2_are_taken_by_name_and_shape():
    wanted = models(single_file._V2_UNET, single_file._V2_TEXT)
    with torch.device("meta"):
        state = unet_to_original(wanted["unet"].state_dict(), wanted["unet"].config)
        state |= vae_to_original(wanted["vae"].state_dict(), wanted["vae"].config)
    made = single_file.rename(state | open_clip_state(24, 1024), wanted)
    assert len(made["unet"]) == 686 and len(made["text_encoder"]) == 372
    assert made["text_encoder"]["text_model.encoder.layers.22.self_attn.q_proj.weight"].shape == (
        1024,
        1024,
    )
