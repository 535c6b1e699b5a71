"""Models and exports once more: a base in another's place, another training's settings, no suffix, paths as typed."""

import logging
import shutil

import pytest
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.config import InferenceConfig, TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import read_json, write_json
from helpers.demo.tokenizer import make_tokenizer
from helpers.inference.draw.sampler import Request, Sampler
from helpers.inference.report import report, verdict_text
from helpers.inference.share.model_card import write_card
from helpers.inference.share.one_file import export
from helpers.models.families import sd1
from helpers.models.licence import licence_of
from helpers.models.tokens import count_tokens, shorten, token_limit
from helpers.models.untrusted import model_folder
from helpers.train.finish import verify_model
from helpers.train.trainer import train
from tests.conftest import SMALL_TRAINING, train_until
from tests.test_bases import one_file
from tests.test_its_own_training import build_again
from tests.test_train import settings

CONFIG = InferenceConfig(run="pictures", num_inference_steps=2, judged_samples=8, probed_captions=2)


@pytest.fixture
def run(lora_run):
    return lora_run


@pytest.fixture
def swapped_base(run, tmp_path):
    """The run with its base at a path at which other weights lie now."""
    verdict = read_json(run.verdict)
    base = tmp_path / "base"
    shutil.copytree(verdict["trained_with"]["settings"]["base_model"], base)
    verdict["trained_with"]["settings"]["base_model"] = str(base)
    write_json(run.verdict, verdict)
    return base


def change(path):
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 0.01}, path, {"format": "pt"})


@pytest.mark.parametrize("model", ["base", "step-000004"])
def test_other_weights_at_the_bases_path_are_not_shown_as_the_base(run, swapped_base, model):
    asked = [Request("a cat", 1, num_inference_steps=2, model=model)]
    kept = Sampler(run).draw(asked)[0].tobytes()
    change(swapped_base / "unet/diffusion_pytorch_model.safetensors")
    sampler = Sampler(run)
    assert sampler.draw([Request("a cat", 1, num_inference_steps=2)])
    with pytest.raises(RunError, match="has other weights now than this model was trained from"):
        sampler.draw(asked)
    with pytest.raises(RunError, match="put back the base model"):
        report(CONFIG, sampler)
    assert kept and not run.report_json.is_file()


def told_in(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_an_export_tells_the_settings_of_its_own_training(run):
    lora, own = run.export / "pictures-lora.safetensors", read_json(run.verdict)["trained_with"]
    export(run)
    before = told_in(lora)
    assert before["ss_num_train_images"] == str(len(run.split_images("train")))
    run.checkpoints.rename(run.folder / "checkpoints-before")
    given = SMALL_TRAINING | {"max_steps": 8, "learning_rate": 0.001, "seed": 3}
    base = own["settings"]["base_model"]
    train_until(configure(TrainConfig, {"run": "pictures", "base_model": base, **given}), run, 2)
    shutil.rmtree(run.export)
    export(run)
    assert run.read_config("train")["seed"] == 3 and told_in(lora) == before
    assert float(before["ss_learning_rate"]) == own["settings"]["learning_rate"] != 0.001


def test_without_its_dataset_a_model_is_exported_and_verified(run):
    shutil.rmtree(run.dataset)
    assert len(export(run)) == 3
    assert "dataset/ is gone" in verify_model(run)


def test_no_library_speaks_when_a_lora_is_exported(run, caplog):
    library = logging.getLogger("diffusers")
    library.addHandler(caplog.handler)  # it hands nothing on
    export(run)
    library.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == []


def test_a_suffix_that_takes_all_tokens_is_refused_before_the_first_step(dataset, tiny_base):
    suffix = " in" + " an elaborate watercolour" * 14
    build_again(dataset, suffix=suffix)
    with pytest.raises(RunError, match="so no caption would be read: set a shorter suffix in 03"):
        list(train(settings(tiny_base), dataset))
    assert not dataset.previews.exists() and not dataset.checkpoints.exists()
    tokenizer = make_tokenizer()
    longest = tokenizer.model_max_length
    assert count_tokens(tokenizer, suffix) > longest
    for text in ("", "a cat", "one two three four"):
        assert shorten(tokenizer, text + suffix, suffix, longest) == suffix


def test_without_a_suffix_no_switch_is_judged_and_no_empty_words_are_advised(dataset, tiny_base):
    build_again(dataset, suffix="")
    list(train(settings(tiny_base), dataset))
    figures = report(CONFIG, Sampler(dataset))
    assert figures["suffix_switch"] == {"left_out": "the captions end in no suffix"}
    assert "suffix" not in figures["verdict"]
    for text in ((dataset.model / "README.md").read_text(), write_card(dataset).read_text()):
        assert "``" not in text.replace("```", "") and "End a prompt" not in text
    assert "Each prompt ends with" not in dataset.report_html.read_text()


def test_the_loss_of_an_earlier_steps_model_is_told():
    verdict = {"base": 1.0, "last": 1.7, "best": 0.86, "best_step": 2, "steps": 10}
    verdict |= {"exported_step": 2, "exported_loss": 0.86, "words": "overfitting since step 2"}
    none = {"left_out": "x"}
    judgement = {"style_gain": none, "suffix_switch": none, "copies": none, "blocked": 0}
    assert "rose by 70%; overfitting" in verdict_text(verdict, judgement)
    assert "the model is step 2's, where it had fallen by 14%." in verdict_text(verdict, judgement)


# --- paths as people type them


@pytest.fixture
def models(tmp_path, tiny_base, monkeypatch):
    """A folder with one-file models at home, its card and settings beside them."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = one_file(tiny_base, tmp_path / "Bäse 画 models")
    (path.parent / "README.md").write_text("---\nlicense: mit\n---\n")
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    return path.parent


@pytest.mark.parametrize("given", ["~/Bäse 画 models/anime-v3.safetensors", "~/Bäse 画 models"])
def test_a_base_at_home_has_its_own_licence_and_length(models, given):
    assert model_folder(given) == model_folder(str(models))
    assert licence_of(given, sd1).name == "MIT"
    assert token_limit(given) == make_tokenizer().model_max_length != 77


def test_a_link_to_one_file_has_what_lies_beside_the_file(models, tmp_path):
    link = tmp_path / "base.safetensors"
    link.symlink_to(models / "anime-v3.safetensors")
    made = model_folder(str(link))
    assert read_json(made / "scheduler/scheduler_config.json")["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("given", ["'my models/a.bin'", " x/y", "C:\\models\\a", "file://x/y z"])
def test_what_is_no_hub_id_is_told_as_a_path_that_is_not_there(models, given):
    with pytest.raises(OSError, match="there is no such file or folder"):
        model_folder(given)


# --- bases whose files came over damaged


def write(name, text):
    return lambda base: (base / name).write_text(text)


def empty_words(base):
    (base / "tokenizer/tokenizer.json").unlink()
    write("tokenizer/vocab.json", "{}")(base), write("tokenizer/merges.txt", "#version: 0.2")(base)


DAMAGED = {
    "model_index.json is no JSON": write("model_index.json", '{"unet"'),
    "model_index.json holds no settings": write("model_index.json", "[]"),
    "unet/config.json is no JSON": write("unet/config.json", ""),
    "unet/config.json is missing": lambda base: (base / "unet/config.json").unlink(),
    "vae/config.json is missing": lambda base: shutil.rmtree(base / "vae"),
    "scheduler/scheduler_config.json is no JSON": write(
        "scheduler/scheduler_config.json", "<html>"
    ),
    "tokenizer/tokenizer.json is no JSON": write("tokenizer/tokenizer.json", "{"),
    "tokenizer/ cannot tokenize": empty_words,
}


@pytest.mark.parametrize("said", DAMAGED)
def test_a_damaged_file_of_a_base_is_named(dataset, tiny_base, tmp_path, said):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    DAMAGED[said](base)
    with pytest.raises(RunError) as raised:
        next(train(settings(base), dataset))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert not dataset.previews.exists()


def test_what_macos_leaves_beside_a_bases_files_is_passed_over(dataset, tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    for path in [path for path in base.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7Mac OS X")
    (base / "unet/._diffusion_pytorch_model.safetensors.index.json").write_bytes(b"\0\5\26\7")
    assert next(train(settings(base), dataset)).step == 0
