"""Base models as people have them: one file, a folder that holds one, variants alone; each trains to the same loss."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.core.errors import RunError
from helpers.host.device import pick_device
from helpers.inference.share.one_file import original_state
from helpers.models import stable_diffusion
from helpers.models.families import sdxl
from helpers.models.original_names import unet_to_original, vae_to_original
from helpers.models.pipeline import load_model, load_pipeline
from helpers.models.untrusted import model_folder
from helpers.train.model import fingerprint, load_components
from helpers.train.trainer import train
from tests.bases import FULL_SDXL, make_sdxl
from tests.loopback_hub import Repo, loopback_hub
from tests.test_train import settings

CPU = pick_device()
WEIGHTS = "unet/diffusion_pytorch_model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A Hugging Face home of the test's own."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    return tmp_path / "hf"


def one_file(base: Path, folder: Path, dtype=torch.float32, extra=None, metadata=None) -> Path:
    """A base as one file, with its settings and its tokenizer beside it, since it has not v1's shapes."""
    state = {
        k: t.to(dtype) if t.is_floating_point() else t for k, t in original_state(base).items()
    }
    folder.mkdir(parents=True)
    path = folder / "anime-v3.safetensors"
    save_file({k: t.contiguous() for k, t in (state | (extra or {})).items()}, path, metadata)
    for part in ("unet", "vae", *(text.name for text in base.glob("text_encoder*"))):
        (folder / part).mkdir()
        shutil.copy(base / part / "config.json", folder / part)
    for vocabulary in base.glob("tokenizer*"):
        shutil.copytree(vocabulary, folder / vocabulary.name)
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
    folder, single = (load_components(str(p), CPU) for p in (tiny_base, path))
    assert fingerprint(single.denoiser) == fingerprint(folder.denoiser)
    kinds = single.fingerprints()
    kinds.pop("noise schedule"), folder.fingerprints()
    assert {k: folder.fingerprints()[k] for k in kinds} == kinds
    assert torch.allclose(
        single.noise_scheduler.alphas_cumprod, folder.noise_scheduler.alphas_cumprod
    )
    assert single.tokenizer("a cat").input_ids == folder.tokenizer("a cat").input_ids


def test_one_file_of_sdxl_holds_what_the_folder_does(tmp_path):
    base = make_sdxl(tmp_path / "base")
    path = one_file(base, tmp_path / "one")
    folder, single = (load_components(str(p), CPU) for p in (base, path))
    assert single.family.NAME == "SDXL" and single.hashes == folder.hashes
    kinds = single.fingerprints()
    assert kinds == folder.fingerprints() | {"noise schedule": kinds["noise schedule"]}
    exported = load_file(tmp_path / "one/anime-v3.safetensors")
    again = original_state(single_folder := model_folder(str(path)))
    assert exported.keys() == again.keys() and all(
        torch.equal(exported[n], again[n]) for n in again
    )
    assert json.loads((single_folder / "model_index.json").read_text())[
        "force_zeros_for_empty_prompt"
    ]


def test_all_weights_of_sdxl_are_taken_by_name_and_shape():
    """The counts of sd_xl_base_1.0: 1680 of the UNet, 248 of the VAE, 196 and 517 of both text encoders."""
    version = stable_diffusion.XL
    made = models(version)
    states = {part: model.state_dict() for part, model in made.items()}
    shapes = {
        name: vars(model.config).get("_internal_dict", model.config) for name, model in made.items()
    }
    state = sdxl.to_original(states, shapes)
    renamed = stable_diffusion.rename(state, made, version)
    assert {part: len(weights) for part, weights in renamed.items()} == {
        "unet": 1680,
        "vae": 248,
        "text_encoder": 196,
        "text_encoder_2": 517,
    }
    assert version.unet | {"layers_per_block": 2} == {
        n: v for n, v in FULL_SDXL["unet"].items() if not n.startswith("_")
    }


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
    "the hub's cache": lambda base, to: in_hub_cache(base, f"some/{to.parent.name}"),
}


def in_hub_cache(base: Path, hub_id: str) -> str:
    """A base as a download leaves it."""
    repo = Path(constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(base, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    return hub_id


def test_every_shape_of_a_base_trains_to_the_same_validation_loss(dataset, tiny_base, tmp_path):
    losses = {}
    for i, (name, make) in enumerate(SHAPES.items()):
        base = make(tiny_base, tmp_path / f"base-{i}")
        steps = list(train(settings(base, max_steps=2, prior_share=0.0), dataset))
        losses[name] = [step.held_out_loss for step in steps if step.held_out_loss]
        dataset.folder.joinpath("checkpoints").rename(dataset.folder / f"checkpoints-{i}")
    whole = losses["a folder"]
    assert losses["one fp32 file"] == losses["a folder with one file"] == whole
    assert losses["the hub's cache"] == whole
    half = losses["a folder in fp16"]
    assert losses["one fp16 file"] == losses["fp16 variants alone"] == half
    assert half == pytest.approx(whole, rel=2e-3)  # of weights rounded to fp16


def v1_state() -> dict[str, torch.Tensor]:
    """All that Stable Diffusion v1 has, in its own names and shapes, without memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(stable_diffusion.V1_UNET)
        vae = AutoencoderKL.from_config(stable_diffusion.VAE_SHAPE)
        text = CLIPTextModel(CLIPTextConfig(**stable_diffusion.V1_TEXT))
        state = unet_to_original(unet.state_dict(), unet.config)
        state |= vae_to_original(vae.state_dict(), vae.config)
    words = {k.removeprefix("text_model."): t for k, t in text.state_dict().items()}
    return state | {f"cond_stage_model.transformer.text_model.{k}": t for k, t in words.items()}


def models(version) -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(version.unet),
            "vae": AutoencoderKL.from_config(version.vae),
        } | {part: text.kind(CLIPTextConfig(**text.config)) for part, text in version.texts.items()}


def test_all_weights_of_stable_diffusion_1_are_taken_by_name_and_shape():
    state = v1_state()
    assert state["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320, 1, 1)
    assert state["model.diffusion_model.output_blocks.11.1.norm.weight"].shape == (320,)
    ema = {f"model_ema.{i}": torch.empty(1) for i in range(200)}
    version = stable_diffusion.V1
    made = stable_diffusion.rename(state | ema, models(version), version)
    assert {part: len(weights) for part, weights in made.items()} == {
        "unet": 686,
        "vae": 248,
        "text_encoder": 196,
    }
    without = {k: t for k, t in state.items() if "output_blocks.11.1.norm" not in k}
    with pytest.raises(ValueError, match="unet is not of this shape: .*norm.weight is missing"):
        stable_diffusion.rename(without, models(version), version)


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
    version = stable_diffusion.V2
    wanted = models(version)
    with torch.device("meta"):
        state = unet_to_original(wanted["unet"].state_dict(), wanted["unet"].config)
        state |= vae_to_original(wanted["vae"].state_dict(), wanted["vae"].config)
    made = stable_diffusion.rename(state | open_clip_state(24, 1024), wanted, version)
    assert len(made["unet"]) == 686 and len(made["text_encoder"]) == 372
    assert made["text_encoder"]["text_model.encoder.layers.22.self_attn.q_proj.weight"].shape == (
        1024,
        1024,
    )


# what cannot be trained, or would fail at the end, is refused before the first step


def edit(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change(base: Path, part: str, act) -> None:
    path = next((base / part).glob("*.safetensors"))
    tensors = load_file(path)
    act(tensors)
    save_file(tensors, path)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def a_pickled_safety_checker(base: Path) -> None:
    edit(
        base / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    )
    (base / "safety_checker").mkdir()
    (base / "safety_checker/config.json").write_text("{}")
    (base / "safety_checker/pytorch_model.bin").write_bytes(b"never read")


BROKEN = {  # how, and words that name the file and what to do
    "no model_index.json": (lambda b: (b / "model_index.json").unlink(), ["model_index.json"]),
    "a pickled safety checker": (
        a_pickled_safety_checker,
        ["safety_checker/pytorch_model.bin", "convert it to safetensors", "[null, null]"],
    ),
    "a feature extractor without its settings": (
        lambda b: edit(
            b / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"]
        ),
        ["feature_extractor/preprocessor_config.json is missing"],
    ),
    "no tokenizer": (
        lambda b: shutil.rmtree(b / "tokenizer"),
        ["tokenizer/vocab.json is missing"],
    ),
    "a tokenizer of another model": (
        lambda b: (
            edit(b / "text_encoder/config.json", vocab_size=800)
            or change(b, "text_encoder", cut_words)
        ),
        ["tokenizer/ has 875 words", "vocab_size of 800"],
    ),
    "prediction_type sample": (
        lambda b: edit(b / "scheduler/scheduler_config.json", prediction_type="sample"),
        ["scheduler/scheduler_config.json", "'sample'", "epsilon and v_prediction"],
    ),
    "weights cut short": (
        lambda b: cut_short(b / f"{WEIGHTS}.safetensors"),
        ["unet/diffusion_pytorch_model.safetensors is not a complete", "download it again"],
    ),
    "a layer missing": (
        lambda b: change(b, "unet", lambda t: t.pop("mid_block.resnets.0.conv1.weight")),
        ["unet/ lacks 1 of the weights", "mid_block.resnets.0.conv1.weight"],
    ),
    "a layer missing in the text encoder": (
        lambda b: change(b, "text_encoder", lambda t: [t.pop(k) for k in list(t) if "fc1" in k]),
        ["text_encoder/ lacks 2 of the weights", "fc1"],
    ),
    "NaN in the text encoder": (
        lambda b: change(b, "text_encoder", lambda t: next(iter(t.values())).fill_(torch.nan)),
        ["text_encoder/ has NaN or inf in "],
    ),
    "an inpainting UNet": (
        lambda b: another_unet(b, in_channels=9),
        ["unet/config.json has in_channels 9", "use a text-to-image model"],
    ),
    "a UNet of another width": (
        lambda b: another_unet(b, cross_attention_dim=24),
        ["unet/config.json has cross_attention_dim 24", "hidden_size 16"],
    ),
    "weights of other shapes than config.json's": (
        lambda b: edit(b / "vae/config.json", block_out_channels=[8, 16]),
        ["could not be loaded", "vae"],
    ),
    "a scheduler of flow matching": (
        lambda b: edit(
            b / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]
        ),
        ["FlowMatchEulerDiscreteScheduler", "cannot be trained"],
    ),
}


def cut_words(tensors: dict[str, torch.Tensor]) -> None:
    name = next(k for k in tensors if k.endswith("token_embedding.weight"))
    tensors[name] = tensors[name][:800].clone()


def another_unet(base: Path, **shape) -> None:
    config = UNet2DConditionModel.load_config(base / "unet") | shape
    UNet2DConditionModel.from_config(config).save_pretrained(base / "unet")


def refusal(base: Path) -> str:
    """The one line with which a base is refused."""
    with pytest.raises(RunError) as caught:
        load_components(str(base), CPU)
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"base_model {str(base)!r} could not be loaded (")
    return said


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_base_is_refused_in_one_line(tiny_base, tmp_path, name):
    breaks, words = BROKEN[name]
    base = shutil.copytree(tiny_base, tmp_path / "base")
    breaks(base)
    said = refusal(base)
    assert all(word in said for word in words), said


def only(names: str):
    """A file that holds nothing but tensors of such names."""
    return lambda path: save_file({name: torch.zeros(4, 4) for name in names.split()}, path)


def nine_channels(path: Path) -> None:
    state = load_file(path)
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(16, 9, 3, 3)
    save_file(state, path)


def without(part: str):
    return lambda path: save_file({k: t for k, t in load_file(path).items() if part not in k}, path)


def as_sd2(path: Path) -> None:
    names = {"cond_stage_model.transformer.text_model.": "cond_stage_model.model.transformer."}
    (old, new), state = next(iter(names.items())), load_file(path)
    save_file({k.replace(old, new): t for k, t in state.items()}, path)


BROKEN_FILES = {
    "SDXL's refiner": (
        only("conditioner.embedders.0.model.x model.diffusion_model.x first_stage_model.x"),
        ["SDXL's refiner", "cannot be trained"],
    ),
    "half of SDXL": (
        only("conditioner.embedders.0.transformer.x model.diffusion_model.x first_stage_model.x"),
        ["lacks the text encoder 2"],
    ),
    "a LoRA": (only("lora_unet_mid_block.lora_down.weight"), ["a LoRA", "give the base"]),
    "a diffusers LoRA": (only("unet.mid_block.lora.down.weight"), ["a LoRA", "give the base"]),
    "a VAE": (only("encoder.conv_in.weight decoder.conv_in.weight"), ["a VAE alone"]),
    "a UNet": (only("down_blocks.0.x"), ["a UNet alone", "unet/, vae/"]),
    "anything else": (only("a b"), ["lacks the UNet"]),
    "no VAE": (without("first_stage_model."), ["lacks the VAE"]),
    "no text encoder": (without("cond_stage_model."), ["lacks the text encoder"]),
    "a block missing": (
        without("middle_block.2."),
        ["its unet is not of this shape", "is missing"],
    ),
    "inpainting": (nine_channels, ["9 channels", "inpainting"]),
    "cut short": (
        cut_short,
        ["anime-v3.safetensors is not a complete safetensors file", "download"],
    ),
    "no model at all": (lambda p: p.write_text("<html>"), ["is not a complete safetensors file"]),
    "quantised": (
        lambda p: save_file({k: t.to(torch.float8_e4m3fn) for k, t in load_file(p).items()}, p),
        ["quantised, F8_E4M3", "fp16 or fp32"],
    ),
    "a second file beside it": (
        lambda p: shutil.copy(p, p.with_name("other.safetensors")),
        ["it holds 2 models, anime-v3.safetensors, other.safetensors", "one of them"],
    ),
    "a Stable Diffusion 2 of an unknown kind": (as_sd2, ["predicts noise or v", "anime-v3.yaml"]),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_one_file_that_is_no_base_is_refused_in_one_line(tiny_base, tmp_path, cache, name):
    breaks, words = BROKEN_FILES[name]
    path = one_file(tiny_base, tmp_path / "one")
    breaks(path)
    said = refusal(path.parent)
    assert all(word in said for word in words), said
    assert not list(cache.glob("single-files/[!.]*"))


def test_a_pickle_and_a_path_that_leads_nowhere_are_told_as_that(tmp_path):
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"never read")
    assert "model.ckpt is a pickle" in refusal(pickled)
    for nowhere in (tmp_path / "gone.safetensors", tmp_path / "gone", Path("models/gone.ckpt")):
        assert "there is no such file or folder" in refusal(nowhere)


def test_without_the_hub_one_file_says_what_it_lacks(tiny_base, tmp_path):
    path = one_file(tiny_base, tmp_path / "one")
    shutil.rmtree(path.parent / "tokenizer")
    said = refusal(path)
    assert "openai/clip-vit-large-patch14" in said and "put tokenizer/ beside" in said


V_PREDICTION = {
    "a key": ({"v_pred": torch.empty(0)}, None, None),
    "metadata": ({}, {"modelspec.prediction_type": "v"}, None),
    "a .yaml": ({}, None, 'model:\n  params:\n    parameterization: "v"\n'),
}


@pytest.mark.parametrize("told_by", V_PREDICTION)
def test_one_file_tells_that_it_predicts_v(tmp_path, tiny_base, told_by):
    extra, metadata, yaml = V_PREDICTION[told_by]
    path = one_file(tiny_base, tmp_path / "one", extra=extra, metadata=metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    parts = load_components(str(path), CPU)
    assert parts.noise_scheduler.config.prediction_type == "v_prediction"
    assert parts.noise_scheduler.alphas_cumprod[-1] > 0


def test_one_file_tells_of_zero_terminal_snr(tmp_path, tiny_base):
    extra = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    parts = load_components(str(one_file(tiny_base, tmp_path / "one", extra=extra)), CPU)
    assert parts.noise_scheduler.alphas_cumprod[-1] == 0


# tokenizers of all shapes


def bare_tokenizer(base: Path) -> None:
    """As old repositories have it: words and merges, nothing that says how long or how to pad."""
    words = json.loads((base / "tokenizer/tokenizer.json").read_text())["model"]
    shutil.rmtree(base / "tokenizer")
    (base / "tokenizer").mkdir()
    (base / "tokenizer/vocab.json").write_text(json.dumps(words["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in words["merges"]]
    (base / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges]))


TOKENIZERS = {
    "words and merges alone": bare_tokenizer,
    "no model_max_length": lambda b: edit_tokenizer(b, model_max_length=None, max_length=None),
    "a model_max_length beyond all": lambda b: edit_tokenizer(b, model_max_length=int(1e30)),
    "no pad token": lambda b: edit_tokenizer(b, pad_token=None),
    "a length in quotes": lambda b: edit_tokenizer(b, model_max_length="77"),
}


def edit_tokenizer(base: Path, **values) -> None:
    path = base / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_of_all_shapes_pad_and_cut(tiny_base, tmp_path, name):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    TOKENIZERS[name](base)
    whole, bare = (load_components(str(p), CPU).tokenizer for p in (tiny_base, base))
    ids = [t("a red cat", padding="max_length", truncation=True).input_ids for t in (whole, bare)]
    assert ids[0] == ids[1] and len(ids[0]) == 32
    assert load_pipeline(str(base), torch.float32)("a cat " * 60, num_inference_steps=1).images


def test_a_base_with_a_bare_tokenizer_trains_and_its_model_draws(dataset, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    bare_tokenizer(base)
    list(train(settings(base, max_steps=1, prior_share=0.0), dataset))
    pipeline = load_pipeline(str(dataset.model), torch.float32)
    assert pipeline("a cat " * 60, num_inference_steps=1).images


def test_a_broken_base_is_refused_before_the_first_step(dataset, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    a_pickled_safety_checker(base)
    with pytest.raises(RunError, match="safety_checker has only pickled weights"):
        next(train(settings(base), dataset))
    assert not dataset.train_log.exists() and not dataset.previews.exists()


# from the hub


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, to which a process of its own is led."""
    with loopback_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "fetched"))
        yield hub


LOAD = """
import sys
from helpers.host.device import pick_device
from helpers.core.errors import RunError
from helpers.train.model import fingerprint, load_components
for name in sys.argv[1:]:
    try:
        print(fingerprint(load_components(name, pick_device()).denoiser))
    except RunError as error:
        print(error)
"""


def test_repositories_as_people_have_them_are_fetched(hub, tiny_base, tmp_path):
    """Of variants alone, of both, one that was deleted, and a file that takes its tokenizer from the hub."""
    both = files_of(tiny_base)
    both |= {k.replace(".safetensors", ".fp16.safetensors"): v for k, v in both.items()}
    alone = files_of(variants_alone(tiny_base, tmp_path / "alone"))
    path = one_file(tiny_base, tmp_path / "one")
    words = files_of(path.parent / "tokenizer")
    shutil.rmtree(path.parent / "tokenizer")
    new = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    held = {"some/alone": alone, "some/both": both, new: files_of(tiny_base)}
    held["openai/clip-vit-large-patch14"] = words
    held["some/file"] = {path.name: path.read_bytes(), "README.md": b"a picture", "x/y.json": b"{}"}
    held["some/files"] = held["some/file"] | {"other.safetensors": b"never fetched"}
    hub.repos = {name: Repo(False, files) for name, files in held.items()}
    names = ["some/alone", "some/both", "runwayml/stable-diffusion-v1-5", str(path)]
    names += ["some/file", "some/files"]
    done = subprocess.run([sys.executable, "-c", LOAD, *names], capture_output=True, text=True)
    wanted = fingerprint(load_components(str(tiny_base), CPU).denoiser)
    said = done.stdout.splitlines()
    assert said[:4] == [wanted] * 4, done.stderr
    fetched = [path for method, path in hub.requests if method == "GET" and "fp16" in path]
    assert fetched and not [path for path in fetched if "some/both" in path]
    told = [line for line in done.stderr.splitlines() if "was deleted from the hub" in line]
    assert len(told) == 1 and new in told[0]
    assert "its unet is not of this shape" in said[4]  # it was fetched, and is not of v1's
    assert "holds 2 .safetensors files: download one" in said[5]
    assert not [path for _, path in hub.requests if "other.safetensors" in path]


def test_a_vae_with_the_names_that_diffusers_gave_until_2023_is_whole(tmp_path):
    """Stable Diffusion v1-5's own has them still."""
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    vae.save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {k.replace(new, name): t for k, t in tensors.items()}
    assert any("query" in name for name in tensors)
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"_diffusers_version": "0.6.0"}))
    loaded = load_model(AutoencoderKL, tmp_path, "vae", torch.float32, torch.device("cpu"))
    assert fingerprint(loaded) == fingerprint(vae)
