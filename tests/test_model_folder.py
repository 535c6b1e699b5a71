"""What lies in model/: what older loaders need, the base's own licence and safety checker, and no path."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from helpers.config import TrainConfig, configure
from helpers.core.files import read_json
from helpers.inference.share.modelspec import Variant
from helpers.inference.share.one_file import to_kohya
from helpers.models.families import sd1, sd2
from helpers.models.licence import Licence, licence_of
from helpers.models.lora import read_lora
from helpers.train.trainer import train
from tests.conftest import ON_EACH_FAMILY, SMALL_TRAINING
from tests.test_inference_draw import strict_checker


@pytest.fixture
def run(lora_run):
    return lora_run


def test_the_tokenizer_has_the_files_that_transformers_4_reads(run):
    """It makes words of merges.txt and ids of vocab.json; tokenizer.json must say the same."""
    folder = run.model / "tokenizer"
    whole = read_json(folder / "tokenizer.json")["model"]
    version, *merges = (folder / "merges.txt").read_text().splitlines()
    assert version == "#version: 0.2" and merges
    assert [tuple(m.split(" ")) for m in merges] == [tuple(m) for m in whole["merges"]]
    assert read_json(folder / "vocab.json") == whole["vocab"]
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "CLIPTokenizer" and settings["model_max_length"] == 32
    asked = ["a CAT's shell, 2 dogs!!", ""]
    base = CLIPTokenizer.from_pretrained(run.read_config("train")["base_model"] + "/tokenizer")
    ours = CLIPTokenizer.from_pretrained(folder)
    same = {"padding": "max_length", "truncation": True}
    assert ours(asked, **same).input_ids == base(asked, **same).input_ids


@ON_EACH_FAMILY
def test_the_text_encoders_weights_have_the_names_of_all_published_files(run, tiny_base):
    """transformers 4 makes up a weight whose name it does not find: SDXL's pooled text was noise."""
    projection = "text_projection.weight"
    for file in run.model.glob("text_encoder*/model.safetensors"):
        names = {name for name in load_file(file) if not name.startswith("text_model.")}
        assert names == ({projection} if file.parent.name == "text_encoder_2" else set())
        assert f"text_model.{projection}" not in load_file(file)


def test_no_file_of_the_model_tells_where_its_base_lay(run):
    base = run.read_config("train")["base_model"]
    for path in run.model.rglob("*.*"):
        if path.is_file():
            assert base.encode() not in path.read_bytes(), path
    assert not [p for p in run.model.rglob("*.json") if "_name_or_path" in p.read_text()]


def test_a_safety_checker_goes_with_the_model_and_is_not_loaded_for_it(
    dataset, tiny_base, tmp_path
):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    strict_checker(base)
    given = {"run": "pictures", "base_model": str(base), **SMALL_TRAINING, "max_steps": 1}
    list(train(configure(TrainConfig, given), dataset))
    name = "safety_checker/model.safetensors"
    assert (dataset.model / name).read_bytes() == (base / name).read_bytes()
    pipeline = DiffusionPipeline.from_pretrained(dataset.model)
    drawn = pipeline("a cat", num_inference_steps=1, height=32, width=32)
    assert drawn.nsfw_content_detected == [True]


CARDS = {
    "---\nlicense: openrail++\n---\n": ("openrail++", "CreativeML Open RAIL++-M"),
    "---\nlicense: mit\n---\n": ("mit", "MIT"),
    "---\nlicense: other\nlicense_name: my-own\nlicense_link: https://x.org/l\n---\n": (
        "other",
        "my-own",
    ),
    "---\nlicense: [a, b]\n---\n": ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
    "---\nlicense: 'a\\n# b'\n---\n": ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
    "---\nlicense: {a\n---\n": ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
    "no header": ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
}


@pytest.mark.parametrize("text", CARDS)
def test_the_licence_is_the_bases_own_or_its_familys(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    found = licence_of(str(tmp_path), sd1)
    assert (found.license, found.name) == CARDS[text]


def test_a_base_without_a_card_or_out_of_reach_has_its_familys_licence(tmp_path):
    assert licence_of(str(tmp_path), sd2) == Licence("openrail++")
    assert licence_of("nobody/nothing", sd1) == Licence("creativeml-openrail-m")
    assert licence_of("assets/tiny-sd", sd1) == Licence("apache-2.0")


def test_an_older_runs_lora_keeps_its_strength_in_each_layout(run, tmp_path):
    """Version 0.2 wrote two schemes of names into a file, and alpha into its metadata alone."""
    path = run.model / "lora/pytorch_lora_weights.safetensors"
    tensors = {
        name.replace("to_q.lora_A", "to_q.lora.down").replace("to_q.lora_B", "to_q.lora.up"): t
        for name, t in load_file(path).items()
    }
    told = json.dumps({"unet.r": 4, "unet.lora_alpha": 1, "unet.lora_dropout": 0.0})
    save_file(tensors, tmp_path / "old.safetensors", {"lora_adapter_metadata": told})
    lora = read_lora(tmp_path / "old.safetensors")
    assert lora.tensors.keys() == load_file(path).keys() and set(lora.alpha.values()) == {1}
    (converted,) = to_kohya(lora, Variant.read(run.model))
    assert {float(t) for n, t in converted.items() if n.endswith(".alpha")} == {1.0}
    for name, tensor in lora.scaled.items():
        factor = 0.25 if name.endswith("lora_B.weight") else 1.0
        assert torch.equal(tensor, factor * load_file(path)[name])
