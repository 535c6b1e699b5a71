"""A light LoRA: what a full fine-tune or a LoRA changed, kept to a low rank."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.inference.draw.sampler import Request, Sampler, make_config
from helpers.inference.report import report
from helpers.inference.share.model_card import write_card
from helpers.inference.share.one_file import export
from helpers.mirror import sync
from helpers.models.light_lora import make_light_lora
from helpers.models.lora import LORA_FILE, find_misfit, lora_change, lora_weights
from helpers.models.pipeline import load_pipeline, sample_fast
from helpers.train import finish

CPU = torch.device("cpu")
ASKED = Request("a turtle", 4, num_inference_steps=2)


@pytest.fixture
def full(trained_run):
    return trained_run


@pytest.fixture
def lora(lora_run):
    return lora_run


def weights(seed):
    """A linear layer, a convolution, an end of the UNet, a norm and a text encoder's layer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "unet.mid_block.attentions.0.proj.weight": (12, 8),
        "unet.down_blocks.0.resnets.0.conv1.weight": (8, 6, 3, 3),
        "unet.conv_in.weight": (8, 4, 3, 3),
        "unet.mid_block.attentions.0.norm.weight": (8,),
        "unet.mid_block.attentions.0.proj.bias": (12,),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight": (10, 5),
        "text_encoder.text_model.embeddings.token_embedding.weight": (30, 5),
        "vae.decoder.conv_in.weight": (4, 4, 3, 3),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def changed(seed=1):
    """A base, and what training has added to each weight: all but the VAE's."""
    base, noise = weights(0), weights(seed)
    return base, {n: 0.1 * noise[n] * ("vae" not in n) for n in base}


def light_of(base, added, rank, share=0.0):
    return make_light_lora(base, added.__getitem__, rank, share, CPU)


def test_at_full_rank_each_layer_has_all_its_change_and_other_weights_are_left_out():
    base, added = changed()
    light = light_of(base, added, 512)
    layers = lora_weights(light.lora, base)
    assert {name.split(".")[-2] for name in layers} == {"proj", "conv1", "fc1"}
    assert light.rank == 8  # of the widest
    for name, layer in layers.items():
        assert torch.allclose(lora_change(light.lora, layer), added[name], atol=1e-3), name
    assert light.kept + light.left_out == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_share_is_what_the_spectra_say_and_the_lora_is_the_nearest_of_its_rank(rank):
    base, added = changed()
    light = light_of(base, added, rank)
    total = sum(float(change.square().sum()) for change in added.values())
    kept = 0.0
    for layer in light.lora.alpha:
        name = f"{layer}.weight"
        squares = np.linalg.svd(added[name].flatten(1).numpy(), compute_uv=False) ** 2
        kept += squares[:rank].sum()
        missed = float((added[name] - lora_change(light.lora, layer)).square().sum())
        assert missed == pytest.approx(squares[rank:].sum(), rel=1e-2)
    assert light.kept == pytest.approx(kept / total, rel=1e-4)


def test_a_share_takes_the_lowest_rank_that_keeps_it():
    base, added = changed()
    kept = {rank: light_of(base, added, rank).kept for rank in range(1, 9)}
    for rank in (2, 3, 5):
        between = (kept[rank - 1] + kept[rank]) / 2
        assert light_of(base, added, 0, between).rank == rank


def test_a_share_that_norms_and_biases_hold_cannot_be_kept():
    base, added = changed()
    with pytest.raises(RunError, match="lora_share: the rest lies in norms and biases"):
        light_of(base, added, 0, 1.0)


def test_a_model_that_is_its_base_leaves_nothing_to_keep():
    base, _ = changed()
    with pytest.raises(RunError, match="nothing to keep"):
        light_of(base, {n: 0 * t for n, t in base.items()}, 4)


def test_rank_and_share_are_one_setting_or_the_other():
    with pytest.raises(RunError, match="give one"):
        InferenceConfig(run="pictures", lora_rank=4, lora_share=0.5)


def by_hand(base, path):
    pipeline = sample_fast(load_pipeline(str(base), torch.float32))
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    seed = torch.Generator().manual_seed(4)
    size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 4.0}
    return np.asarray(pipeline("a turtle", generator=seed, **size).images[0], int)


def test_both_layouts_draw_in_diffusers_what_05_judged(full):
    sampler, config = Sampler(full), make_config(full, {"lora_rank": 4})
    files = {path.relative_to(full.export).as_posix() for path in export(full, config, sampler)}
    assert files == {
        "pictures.safetensors",
        "pictures-lora-rank4.safetensors",
        f"diffusers-rank4/{LORA_FILE}",
    }
    (drawn,) = sampler.draw([Request(**vars(ASKED) | {"model": "light"})])
    base = full.read_config("train")["base_model"]
    for name in ("pictures-lora-rank4.safetensors", f"diffusers-rank4/{LORA_FILE}"):
        assert np.abs(by_hand(base, full.export / name) - np.asarray(drawn, int)).max() <= 2
    assert load_file(full.export / "pictures-lora-rank4.safetensors")[
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"
    ].shape == (4, 16, 3, 3)


def test_the_whole_model_can_be_left_out_and_comes_back(full):
    sampler = Sampler(full)
    config = make_config(full, {"lora_rank": 2, "one_file": "no"})
    files = export(full, config, sampler)
    assert [path.name for path in files] == [LORA_FILE, "pictures-lora-rank2.safetensors"]
    written = {path: path.stat().st_mtime_ns for path in files}
    assert {p: p.stat().st_mtime_ns for p in export(full, config, sampler)} == written
    assert [path.name for path in export(full)] == ["pictures.safetensors"]


def test_a_lora_is_shrunk_beside_itself(lora):
    sampler, config = Sampler(lora), make_config(lora, {"lora_rank": 2})
    names = [path.name for path in export(lora, config, sampler)]
    assert "pictures-lora.safetensors" in names and "pictures-lora-rank2.safetensors" in names
    light = sampler.light_lora(config)
    assert 0.3 < light.kept < 1 and light.left_out < 1e-6  # its layers are all that it changed
    assert not find_misfit(light.lora, sampler.weights.tuned)


@pytest.mark.parametrize("rank", [4, 64])
def test_a_lora_is_not_shrunk_to_what_it_is(lora, rank):
    with pytest.raises(RunError, match="the model's LoRA has rank 4: give a smaller one"):
        make_config(lora, {"lora_rank": rank})


def test_the_report_judges_it_beside_the_model(full):
    few = {"judged_samples": 8, "probed_captions": 0, "lora_rank": 512}
    sampler, config = Sampler(full), make_config(full, few)
    found = report(config, sampler)["light_lora"]
    whole = json.loads(full.report_json.read_text())["style_gain"]
    assert found["full_style_gain"] == whole and found["rank"] == 32
    assert found["kept"] + found["outside"] == pytest.approx(1)
    assert "light LoRA" in full.report_html.read_text()
    card = write_card(full).read_text()
    assert "`export/pictures-lora-rank32.safetensors` is a light LoRA of" in card
    assert "read `export/pictures.safetensors`" in card


def test_the_report_says_why_there_is_none(full):
    few = {"judged_samples": 8, "probed_captions": 0, "lora_share": 1.0}
    sampler, config = Sampler(full), make_config(full, few)
    assert "norms and biases" in report(config, sampler)["light_lora"]["left_out"]
    assert "norms and biases" in full.report_html.read_text()


@pytest.mark.parametrize(("free", "is_told"), [(1e3, True), (1e12, False)])
def test_04_offers_it_where_the_mirror_is_short_of_room(full, tmp_path, monkeypatch, free, is_told):
    monkeypatch.setattr(sync.here, "MIRROR", sync.here.Place(tmp_path, name="the mirror"))
    monkeypatch.setattr(sync.here, "free_bytes", lambda: free)
    assert ("'lora_rank': 32" in finish.verify_model(full)) == is_told


def test_04_offers_none_of_a_lora(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(sync.here, "MIRROR", sync.here.Place(tmp_path, name="the mirror"))
    monkeypatch.setattr(sync.here, "free_bytes", lambda: 1e3)
    assert "lora_rank" not in finish.verify_model(lora)
