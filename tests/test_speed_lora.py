"""Drawing fast: a speed LoRA merged into any of the models, its scheduler, its licence, and what it costs."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import TCDScheduler
from peft import LoraConfig
from safetensors.torch import save_file

from helpers.core.errors import RunError
from helpers.inference.draw.prompt_box import PromptBox
from helpers.inference.draw.sampler import Request, Sampler, make_config
from helpers.inference.report import report
from helpers.inference.share.modelspec import Variant
from helpers.inference.share.one_file import to_kohya
from helpers.models.lora import LORA_FILE, Lora, extract_lora, lora_change, write_lora
from helpers.models.pipeline import load_pipeline
from tests.bases import make_sdxl
from tests.conftest import ROOT
from tests.loopback_hub import Repo, loopback_hub

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "proj_in"]
FEW = {"judged_samples": 8, "probed_captions": 0}
CARD = "---\nlicense: mit\n---\n"


def random_lora(base, kind=TARGETS, rank=3, alpha=6.0, text=False) -> Lora:
    """A LoRA for a base, as peft makes it, with both factors random."""
    torch.manual_seed(0)
    pipeline = load_pipeline(str(base), torch.float32, safety_checker=False)
    given = {"r": rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
    pipeline.unet.add_adapter(LoraConfig(target_modules=kind, **given))
    modules = {"unet": pipeline.unet}
    if text:
        targets = ["q_proj", "out_proj", "fc1"]
        pipeline.text_encoder.add_adapter(LoraConfig(target_modules=targets, **given))
        modules["text_encoder"] = pipeline.text_encoder
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.2)
    return extract_lora(modules)


def old_names(lora: Lora) -> dict:
    """By the names of diffusers 0.2x: processors, and `lora.down` elsewhere."""
    named = {}
    for name, tensor in lora.tensors.items():
        name = name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
        for part in ("to_q", "to_k", "to_v"):
            name = name.replace(f".{part}.lora.", f".processor.{part}_lora.")
        named[name.replace(".to_out.0.lora.", ".processor.to_out_lora.")] = tensor
    return named


@pytest.fixture
def run(trained_run):
    return trained_run


@pytest.fixture
def sampler(run):
    return Sampler(run)


@pytest.fixture
def speed(tiny_base, tmp_path):
    """A folder as the Hub's: a LoRA and its card."""
    folder = tmp_path / "TCD-tiny"
    write_lora(folder / LORA_FILE, random_lora(tiny_base), {})
    (folder / "README.md").write_text(CARD)
    return folder


def with_speed(run, lora, **more):
    return make_config(run, {"speed_lora": str(lora), **FEW, **more})


def asked(**given):
    return Request("a turtle", 4, num_inference_steps=2, **given)


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "old"])
@pytest.mark.parametrize("weight", [1.0, 0.7])
@pytest.mark.parametrize("model", ["base", "tuned"])
def test_in_any_layout_it_is_merged_as_diffusers_merges_it(
    run, sampler, tiny_base, tmp_path, layout, weight, model
):
    lora = random_lora(tiny_base, alpha=3.0 if layout == "old" else 6.0)  # the old one had none
    path = tmp_path / f"{layout}.safetensors"
    if layout == "diffusers":
        write_lora(path, lora, {})
    else:
        (kohya,) = to_kohya(lora, Variant.read(tiny_base))
        save_file(kohya if layout == "kohya" else old_names(lora), path)
    sampler.use_speed_lora(with_speed(run, path))
    sampler.weights.load(model, speed=weight)
    folder = {"base": tiny_base, "tuned": run.model}[model]
    pipeline = load_pipeline(str(folder), torch.float32, safety_checker=False)
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    pipeline.set_adapters(pipeline.get_active_adapters(), weight)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    theirs, changed = pipeline.unet.state_dict(), 0
    for name, tensor in sampler.weights.modules["unet"].state_dict().items():
        assert torch.allclose(tensor, theirs[name], atol=1e-5), name
        changed += not torch.equal(tensor, before[name])
    assert changed == len(lora.alpha)


def test_it_is_drawn_by_its_scheduler_with_the_eta_of_its_paper(run, sampler, speed):
    request = asked(speed=1.0, scheduler="TCD", guidance_scale=0.0)
    sampler.use_speed_lora(with_speed(run, speed))
    drawn = np.asarray(sampler.draw([request])[0], int)
    pipeline = load_pipeline(str(run.model), torch.float32, safety_checker=False)
    pipeline.load_lora_weights(speed, weight_name=LORA_FILE)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.scheduler = TCDScheduler.from_config(pipeline.scheduler.config)

    def by_hand(eta):
        seed = torch.Generator().manual_seed(4)
        size = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 0.0}
        return np.asarray(pipeline("a turtle", generator=seed, eta=eta, **size).images[0], int)

    assert np.abs(by_hand(0.3) - drawn).max() <= 2 < np.abs(by_hand(0.0) - drawn).max()


def test_it_leaves_no_trace_in_what_is_drawn_after_it(run, sampler, speed):
    before = np.asarray(sampler.draw([asked()])[0])
    sampler.use_speed_lora(with_speed(run, speed))
    for model in ("tuned", "base", "step-000002"):
        sampler.draw([asked(speed=0.5, scheduler="LCM", model=model)])
    assert np.array_equal(before, np.asarray(sampler.draw([asked()])[0]))


@pytest.mark.parametrize(
    ("name", "chosen", "scheduler"),
    [
        ("TCD-tiny", "auto", "TCD"),
        ("lcm-lora-tiny", "auto", "LCM"),
        ("Hyper", "auto", "TCD"),
        ("TCD-tiny", "LCM", "LCM"),
    ],
)
def test_the_scheduler_is_read_off_its_name_or_chosen(run, sampler, speed, name, chosen, scheduler):
    speed = speed.rename(speed.with_name(name))
    found = sampler.use_speed_lora(with_speed(run, speed, speed_scheduler=chosen))
    assert found.scheduler == scheduler


def test_its_licence_is_shown_and_one_without_is_told(run, sampler, speed):
    assert "TCD-tiny (licence: MIT), 4 steps by TCD" in str(
        sampler.use_speed_lora(with_speed(run, speed))
    )
    (speed / "README.md").unlink()
    assert "licence: not stated" in str(sampler.use_speed_lora(with_speed(run, speed)))


# what is no speed LoRA of this model


def of_sdxl(folder, _base):
    path = folder / "lora.safetensors"
    write_lora(path, random_lora(make_sdxl(folder / "sdxl"), kind=["to_q", "to_k"]), {})
    return path, "it is of another model: its layer unet."


def of_other_shapes(folder, base):
    lora = random_lora(base)
    name = next(n for n in lora.tensors if n.endswith("attn2.to_k.lora_A.weight"))
    wider = torch.cat([lora.tensors[name]] * 2, 1)
    path = folder / "lora.safetensors"
    write_lora(path, Lora(lora.tensors | {name: wider}, lora.alpha, {}), {})
    return path, "it is of another model: its layer unet."


def of_the_text_too(folder, base):
    write_lora(folder / "lora.safetensors", random_lora(base, text=True), {})
    return folder / "lora.safetensors", "it changes text_encoder, unet"


def pickled(folder, _base):
    (folder / "in").mkdir()
    (folder / "in/pytorch_lora_weights.bin").write_bytes(pickle.dumps({"a": 1}))
    return folder / "in", "is a pickle, which could run any code and is not read"


def pickled_file(folder, _base):
    (folder / "lora.pt").write_bytes(pickle.dumps({"a": 1}))
    return folder / "lora.pt", "is a pickle, which could run any code and is not read"


def pickled_as_safetensors(folder, _base):
    (folder / "lora.safetensors").write_bytes(pickle.dumps({"a": 1}))
    return folder / "lora.safetensors", "is no safetensors file"


def missing(folder, _base):
    return folder / "nothing" / "lora.safetensors", "there is no such file or folder"


def several(folder, base):
    for name in ("a", "b"):
        write_lora(folder / "in" / f"{name}.safetensors", random_lora(base), {})
    return folder / "in", "holds 2 .safetensors files: give the path of one"


def empty(folder, _base):
    (folder / "in").mkdir()
    return folder / "in", "holds 0 .safetensors files"


def a_whole_model(folder, base):
    return base / "unet/diffusion_pytorch_model.safetensors", "it is no LoRA"


def half_of_one(folder, base):
    lora = random_lora(base)
    tensors = {n: t for n, t in lora.tensors.items() if "lora_A" in n or "conv1" not in n}
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors", "it is no LoRA"


def of_nan(folder, base):
    lora = random_lora(base)
    path = folder / "lora.safetensors"
    write_lora(path, Lora({n: t * torch.nan for n, t in lora.tensors.items()}, lora.alpha, {}), {})
    return path, "it has NaN or inf in unet."


def of_nan_alpha(folder, base):
    path = folder / "lora.safetensors"
    write_lora(path, replace(random_lora(base), settings={"unet.lora_alpha": torch.nan}), {})
    return path, "is nan"


def of_rank_0(folder, base):
    lora = random_lora(base)
    none = {n: t[:0] if "lora_A" in n else t[:, :0] for n, t in lora.tensors.items()}
    save_file({n: t.contiguous() for n, t in none.items()}, folder / "lora.safetensors")
    return folder / "lora.safetensors", "it is no LoRA"


def empty_file(folder, _base):
    save_file({}, folder / "lora.safetensors")
    return folder / "lora.safetensors", "it is no LoRA"


BAD = [
    of_sdxl,
    of_other_shapes,
    of_the_text_too,
    pickled,
    pickled_file,
    pickled_as_safetensors,
    missing,
    several,
    empty,
    a_whole_model,
    half_of_one,
    of_nan,
    of_nan_alpha,
    of_rank_0,
    empty_file,
]


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_one_that_does_not_fit_is_told_in_a_line_and_the_box_works_on(
    run, sampler, tiny_base, tmp_path, make
):
    path, why = make(tmp_path, tiny_base)
    config = with_speed(run, path)
    with pytest.raises(RunError) as told:
        sampler.use_speed_lora(config)
    assert why in str(told.value) and "\n" not in str(told.value)
    box = PromptBox(sampler, config, "a turtle")
    assert why in box.cost.value and box.fast.layout.display == "none"
    box.count.value, box.steps.value, box.compare.value = 1, 2, False
    box.button.click()
    assert "Kept in" in box.message.value


def test_the_report_says_in_a_line_why_it_was_not_judged(run, sampler, tiny_base, tmp_path):
    path, why = of_sdxl(tmp_path, tiny_base)
    assert why in report(with_speed(run, path), sampler)["speed"]["left_out"]
    assert why in run.report_html.read_text()


@pytest.mark.parametrize("steps", [51, 60])
def test_more_steps_than_it_was_made_for_are_refused(run, sampler, speed, steps):
    sampler.use_speed_lora(with_speed(run, speed))
    with pytest.raises(RunError, match="1 to 50 steps"):
        sampler.draw([Request("a cat", 1, num_inference_steps=steps, speed=1.0, scheduler="TCD")])


# the box


def box_of(run, sampler, speed, **given):
    box = PromptBox(sampler, with_speed(run, speed, speed_steps=3), "a turtle")
    for name, value in {"count": 1, **given}.items():
        getattr(box, name).value = value
    return box


def test_the_switch_draws_both_models_fast_and_a_press_brings_it_back(run, sampler, speed):
    box = box_of(run, sampler, speed, seed=61)
    before = box.steps.value, box.guidance.value
    box.fast.value = True
    assert (box.steps.value, box.guidance.value, box.scheduler.disabled) == (3, 1.0, True)
    box.button.click()
    kept = [json.loads(p.read_text()) for p in sorted(run.samples.glob("*-61.json"))]
    assert {row["model"] for row in kept} == {"base", "tuned"}
    assert all((row["scheduler"], row["speed"]) == ("TCD", 1.0) for row in kept)
    tuned = box.history.children[1]
    box.fast.value = False
    assert (box.steps.value, box.guidance.value, box.scheduler.disabled) == (*before, False)
    tuned.children[1].click()
    assert box.fast.value and box.steps.value == 3
    box.compare.value = False
    before = set(run.samples.glob("*.png"))
    box.button.click()
    assert set(run.samples.glob("*.png")) == before  # the very same picture


def test_a_picture_that_was_drawn_fast_is_drawn_again_to_the_same_bits(run, sampler, speed):
    sampler.use_speed_lora(with_speed(run, speed))
    request = asked(speed=0.8, scheduler="LCM", guidance_scale=1.5)
    path = sampler.save(request, image := sampler.draw([request])[0])
    assert np.array_equal(image, sampler.redraw(path))
    with pytest.raises(RunError, match="set speed_lora"):
        Sampler(run).redraw(path)
    (speed / LORA_FILE).write_bytes(b"")
    lora = random_lora(run.read_config("train")["base_model"], rank=2)
    write_lora(speed / LORA_FILE, lora, {})
    sampler.use_speed_lora(with_speed(run, speed))
    with pytest.raises(RunError, match="with a speed LoRA that is not loaded: set speed_lora"):
        sampler.redraw(path)


def test_a_picture_that_another_speed_lora_drew_is_told_when_it_is_brought_back(
    run, sampler, speed, tiny_base
):
    box = box_of(run, sampler, speed, seed=61, compare=False, fast=True)
    box.button.click()

    def brought_back(**more):
        box = PromptBox(Sampler(run), with_speed(run, speed, **more), "else")
        box.history.children[0].children[1].click()
        assert box.fast.value
        return box.message.value

    assert brought_back() == "Settings brought back."
    by_weight = brought_back(speed_weight=0.7)
    assert "it was drawn by TCD at a weight of 1: set speed_scheduler" in by_weight
    assert "it was drawn by TCD at a weight of 1" in brought_back(speed_scheduler="LCM")
    write_lora(speed / LORA_FILE, random_lora(tiny_base, rank=2), {})
    assert "with a speed LoRA that is not loaded: set speed_lora" in brought_back()


def test_pictures_of_before_there_was_a_speed_are_known_and_drawn_again(run, sampler):
    path = sampler.save(asked(), image := sampler.draw([asked()])[0])
    assert "speed" not in json.loads(path.with_suffix(".json").read_text())
    assert np.array_equal(image, sampler.redraw(path)) and sampler.album.has(
        sampler.settings(asked())
    )


def test_the_box_says_what_the_report_measured_of_this_lora_alone(run, sampler, speed):
    assert "once the report was made" in box_of(run, sampler, speed).cost.value
    found = report(with_speed(run, speed, speed_steps=3), sampler)
    gain, full = found["speed"]["style_gain"]["value"], found["style_gain"]["value"]
    words = box_of(run, sampler, speed).cost.value
    assert f"Style gain {gain:.2f} in 3 steps by TCD, {full:.2f} in" in words
    assert words.removeprefix("<small>").split(";")[0] in run.report_html.read_text()
    other = PromptBox(sampler, with_speed(run, speed, speed_steps=2), "a turtle")
    assert "once the report was made" in other.cost.value


def test_without_a_speed_lora_there_is_no_switch(run, sampler):
    box = PromptBox(sampler, make_config(run), "a turtle")
    assert box.fast.layout.display == "none" and not box.cost.value


# from the Hub

FETCH = """
from helpers.models.untrusted import lora_file
from helpers.models.licence import stated_licence
print(lora_file("someone/lcm", "pytorch_lora_weights.safetensors").read_bytes() == b"the LoRA")
print(lora_file("someone/other", "pytorch_lora_weights.safetensors").name, stated_licence("someone/other").name)
for name in ("someone/many", "someone/secret"):
    try:
        lora_file(name, "pytorch_lora_weights.safetensors")
    except (OSError, ValueError) as error:
        print(error)
"""


def test_of_a_repository_the_one_file_and_the_card_are_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = {"run.py": b"", "pytorch_lora_weights.bin": b"", "unet/model.safetensors": b"big"}
    with loopback_hub() as hub:
        hub.repos["someone/lcm"] = Repo(False, {LORA_FILE: b"the LoRA", **beside})
        hub.repos["someone/other"] = Repo(
            False, {"it.safetensors": b"x", "README.md": CARD.encode(), **beside}
        )
        hub.repos["someone/many"] = Repo(False, {"a.safetensors": b"a", "b.safetensors": b"b"})
        hub.repos["someone/secret"] = Repo(True, {LORA_FILE: b"x"})
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_HOME": "hf", "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", FETCH], env=env, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second, many, secret = done.stdout.splitlines()
    assert (first, second) == ("True", "it.safetensors MIT")
    assert "2 .safetensors files" in many and "the hub shows no such model" in secret
    fetched = {p.name for p in (tmp_path / "hf").rglob("*") if p.is_symlink() or p.suffix == ".bin"}
    assert fetched == {LORA_FILE, "it.safetensors", "README.md"}


def test_what_is_merged_is_the_sum_that_the_paper_writes():
    down, up = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1)
    tensors = {"unet.conv.lora_A.weight": down, "unet.conv.lora_B.weight": up}
    wanted = 2 * torch.einsum("orxy,rikl->oikl", up, down)
    found = lora_change(Lora(tensors, {"unet.conv": 4.0}, {}), "unet.conv")
    assert torch.allclose(found, wanted, atol=1e-5)
