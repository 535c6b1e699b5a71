"""What leaves a training acts as what was trained: each export, in each shape of base, by diffusers' own loaders."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.config import TrainConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import find_corruption, read_json
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.inference.share.one_file import export
from helpers.models.pipeline import load_pipeline
from helpers.train import checkpoint
from helpers.train.finish import finish
from helpers.train.model import load_components, make_trainable
from helpers.train.prepare import prepare
from helpers.train.trainer import train
from tests.bases import make_base
from tests.conftest import SMALL_TRAINING, make_dataset, photograph

BASES = {
    "sd1": {},
    "sd1, no attention at first": {"attends": (False, True)},
    "sd1, v": {"prediction_type": "v_prediction", "attends": (False, True)},
    "sd2": {"is_v2": True},
    "sd2, v, zero SNR": {"is_v2": True, "prediction_type": "v_prediction", "zero_snr": True},
}
TRAININGS = [  # alpha below, at and above the rank of 4; with and without the text encoder
    ("sd1", {"method": "full"}),
    ("sd1, v", {"method": "full", "train_text_encoder": True}),
    ("sd2, v, zero SNR", {"method": "full", "train_text_encoder": True}),
    ("sd1", {"lora_targets": "attention_ff", "lora_alpha": 16}),
    ("sd1, no attention at first", {"lora_targets": "attention_ff_conv", "lora_alpha": 4}),
    (
        "sd1, no attention at first",
        {"lora_targets": "attention", "lora_alpha": 1, "train_text_encoder": True},
    ),
    ("sd1, v", {"lora_targets": "attention", "lora_alpha": 3}),
    (
        "sd2, v, zero SNR",
        {"lora_targets": "attention_ff_conv", "lora_alpha": 1, "train_text_encoder": True},
    ),
    ("sd2", {"lora_targets": "attention_ff", "lora_alpha": 8, "train_text_encoder": True}),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with a dataset, `pictures`, and each base."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for i in range(8):
            photograph(folder / f"in/{i}.jpg", i).with_suffix(".txt").write_text(f"thing {i}")
        make_dataset("pictures", folder / "in")
        for seed, (name, shape) in enumerate(BASES.items()):
            make_base(folder / name, **shape, seed=seed)
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """The run with nothing of a training in it."""
    monkeypatch.chdir(place)
    run = Run("pictures")
    for path in (run.checkpoints, run.model, run.export, run.previews):
        shutil.rmtree(path, ignore_errors=True)
    for path in (run.verdict, run.train_log):
        path.unlink(missing_ok=True)
    return run


def settings(base, **given):
    asked = {"method": "lora", "rank": 4, "learning_rate": 0.05, "text_encoder_lr": 0.05}
    quick = {"max_steps": 2, "validate_every_steps": 2, "prior_share": 0.0, "lr_warmup_steps": 0}
    return configure(
        TrainConfig,
        {"run": "pictures", "base_model": base, **SMALL_TRAINING, **quick, **asked, **given},
    )


@torch.no_grad()
def effect(text_encoder, unet):
    """What a text encoder and a UNet make of the same words, noise and time, whatever wrote or loaded them."""
    source = torch.Generator().manual_seed(5)
    ids = torch.randint(0, text_encoder.config.vocab_size, (2, 12), generator=source)
    noise = torch.randn(2, 4, 8, 8, generator=source)
    words = text_encoder.eval()(ids).last_hidden_state
    return unet.eval()(noise, torch.tensor([10, 700]), words).sample


def trained_effect(config, run):
    """That of the last checkpoint's tensors, in the modules that were trained."""
    parts = load_components(config.base_model, pick_device(), config.train_text_encoder)
    trained = make_trainable(parts, config, torch.float32)
    checkpoint.load_weights(run.checkpoint(config.max_steps), trained.trained_weights())
    return effect(parts.text_encoders["text_encoder"], parts.denoiser)


def exported_effects(config, run):
    """That of each file, loaded by diffusers as its card says."""
    for path in (run.model, *export(run)):
        if path == run.model:
            pipeline = load_pipeline(str(path), torch.float32)
        elif path.stem == run.name:
            pipeline = StableDiffusionPipeline.from_single_file(
                str(path), config=str(run.model), local_files_only=True, torch_dtype=torch.float32
            )
        else:
            pipeline = load_pipeline(config.base_model, torch.float32)
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
        yield path, effect(pipeline.text_encoder, pipeline.unet)


@pytest.mark.parametrize(("base", "given"), TRAININGS, ids=lambda value: str(value))
def test_each_export_acts_as_what_was_trained(run, base, given):
    config = settings(base, **given)
    list(train(config, run))
    trained = trained_effect(config, run)
    untrained = load_pipeline(base, torch.float32)
    assert (trained - effect(untrained.text_encoder, untrained.unet)).abs().max() > 1e-2
    seen = dict(exported_effects(config, run))
    assert len(seen) == (4 if config.method == "lora" else 2)
    for path, found in seen.items():
        assert torch.allclose(found, trained, atol=1e-4), path
    has_yaml = (run.export / "pictures.yaml").is_file()
    one_file = load_file(run.export / "pictures.safetensors")
    assert has_yaml == ("v_pred" in one_file) == ("v" in base.split(", "))
    assert ("ztsnr" in one_file) == ("zero SNR" in base)
    assert ("cond_stage_model.model.ln_final.weight" in one_file) == base.startswith("sd2")
    if config.method == "lora":
        kohya = load_file(run.export / "pictures-lora.safetensors")
        alphas = {float(t) for name, t in kohya.items() if name.endswith(".alpha")}
        assert alphas == {config.lora_alpha}
        text = {name.split(".")[0] for name in kohya if name.startswith("lora_te_")}
        layers = range(2 if config.train_text_encoder else 0)
        ends = ("q_proj", "k_proj", "v_proj", "out_proj")
        root = "lora_te_text_model_encoder_layers"
        assert text == {f"{root}_{i}_self_attn_{end}" for i in layers for end in ends}


def test_the_verdict_is_the_saved_models(run):
    base = "sd1, no attention at first"
    config = settings(base, lora_targets="attention_ff", learning_rate=0.5, max_steps=4)
    log = [step.held_out_loss for step in train(config, run) if step.held_out_loss]
    verdict = read_json(run.verdict)
    assert verdict["last"] == verdict["exported_loss"] == pytest.approx(log[-1], rel=1e-4)
    assert abs(log[-1] / log[0] - 1) > 0.01


# --- planted faults


def rewritten(path, change):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        told = dict(file.metadata())
    change(tensors, told)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, told)


def first(tensors, end, number=0):
    return sorted(name for name in tensors if name.endswith(end))[number]


def dropped(end, number=0):
    return lambda tensors, _: tensors.pop(first(tensors, end, number))


def renamed(end, old, new):
    def change(tensors, _):
        name = first(tensors, end)
        tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def scaled(end, factor):
    def change(tensors, _):
        name = first(tensors, end)
        tensors[name] = tensors[name] * factor

    return change


def swapped(end):
    def change(tensors, _):
        one = first(tensors, end)
        other = next(
            n
            for n in sorted(tensors)
            if n.endswith(end) and n != one and tensors[n].shape == tensors[one].shape
        )
        tensors[one], tensors[other] = tensors[other], tensors[one]

    return change


def retold(old, new):
    def change(_, told):
        told["lora_adapter_metadata"] = told["lora_adapter_metadata"].replace(old, new)

    return change


def added(tensors, _):
    tensors["unet.no_such_layer.lora_A.weight"] = torch.zeros(4, 4)


FILES = {
    "lora": "lora/pytorch_lora_weights.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
TO_Q, UNET_UP = "to_q.lora_A.weight", "attn1.to_q.lora_B.weight"
FAULTS = {  # in 04: the file that a fault is planted in, and the fault
    "a layer's lora_B dropped": ("lora", dropped(UNET_UP)),
    "a layer's lora_A dropped": ("lora", dropped(TO_Q)),
    "a convolution dropped": ("lora", dropped("conv1.lora_B.weight")),
    "a text layer dropped": ("lora", dropped("k_proj.lora_B.weight")),
    "a name misspelt": ("lora", renamed(TO_Q, "to_q", "to_Q")),
    "a name in the other scheme": ("lora", renamed(TO_Q, "lora_A", "lora.down")),
    "a text layer without its prefix": ("lora", renamed("q_proj.lora_A.weight", "text_e", "te")),
    "one tensor too many": ("lora", added),
    "lora_B off by a per cent": ("lora", scaled(UNET_UP, 1.01)),
    "lora_B of zeros": ("lora", scaled(UNET_UP, 0.0)),
    "two layers swapped": ("lora", swapped(UNET_UP)),
    "alpha changed": ("lora", retold('"unet.lora_alpha": 1', '"unet.lora_alpha": 4')),
    "the text encoder's alpha changed": (
        "lora",
        retold('"text_encoder.lora_alpha": 1', '"text_encoder.lora_alpha": 2'),
    ),
    "alpha not told": ("lora", lambda _, told: told.pop("lora_adapter_metadata")),
    "a merged layer dropped": ("unet", dropped("attn1.to_q.weight")),
    "a merged layer misspelt": ("unet", renamed("attn1.to_q.weight", "to_q", "to_Q")),
    "a merged layer off by a per mille": ("unet", scaled("attn1.to_q.weight", 1.001)),
    "two merged layers swapped": ("unet", swapped("attn1.to_q.weight")),
    "a bias of the UNet lost": ("unet", scaled("conv_in.bias", 0.0)),
    "a text encoder's layer dropped": ("text_encoder", dropped("q_proj.weight")),
    "a text encoder's layer misspelt": ("text_encoder", renamed("q_proj.weight", "q_p", "Q_p")),
    "two of the text encoder's swapped": ("text_encoder", swapped("q_proj.weight")),
    "the autoencoder touched": ("vae", scaled("conv_in.weight", 1.01)),
}
EXPORT_FAULTS = {  # in 05
    "a layer dropped": ("pictures.safetensors", dropped("attn1.to_q.weight")),
    "a layer misspelt": ("pictures.safetensors", renamed("attn1.to_q.weight", "to_q", "q")),
    "two layers swapped": ("pictures.safetensors", swapped("attn1.to_q.weight")),
    "a text layer off": ("pictures.safetensors", scaled("k_proj.weight", 1.01)),
    "the autoencoder off": ("pictures.safetensors", scaled("decoder.conv_in.weight", 1.01)),
    "kohya: a layer dropped": ("pictures-lora.safetensors", dropped("to_q.lora_up.weight")),
    "kohya: all of a layer dropped": (
        "pictures-lora.safetensors",
        lambda tensors, _: [tensors.pop(n) for n in list(tensors) if "_mid_block_" in n],
    ),
    "kohya: one alpha changed": ("pictures-lora.safetensors", scaled("to_k.alpha", 2.0)),
    "kohya: a text layer's alpha changed": ("pictures-lora.safetensors", scaled("q_proj.alpha", 4)),
    "kohya: a name misspelt": (
        "pictures-lora.safetensors",
        renamed("to_q.lora_down.weight", "to_q", "toq"),
    ),
    "diffusers: alpha changed": (
        "diffusers/pytorch_lora_weights.safetensors",
        retold('"unet.lora_alpha": 1', '"unet.lora_alpha": 4'),
    ),
}


@pytest.fixture(scope="module")
def training(place):
    """A training of a LoRA on everything that has come to its end, with all that the end works with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = Run("pictures")
        for path in (run.checkpoints, run.model, run.export):
            shutil.rmtree(path, ignore_errors=True)
        run.verdict.unlink(missing_ok=True)
        config = settings(
            "sd1, no attention at first", lora_alpha=1, train_text_encoder=True, max_steps=1
        )
        list(train(config, run))
        yield prepare(config, run, pick_device())


@pytest.fixture
def plant(monkeypatch):
    """Have the real writer of safetensors' files plant a fault into the named one, once."""

    def begin(end, change):
        real = safetensors.torch.serialize_file

        def write(tensors, path, metadata=None):
            real(tensors, path, metadata)
            if Path(path).as_posix().endswith(f"/{end}"):
                monkeypatch.setattr(safetensors.torch, "serialize_file", real)
                rewritten(Path(path), change)

        monkeypatch.setattr(safetensors.torch, "serialize_file", write)

    return begin


@pytest.mark.parametrize("fault", FAULTS)
def test_the_end_of_04_catches_a_fault_in_what_it_wrote(training, plant, monkeypatch, place, fault):
    monkeypatch.chdir(place)
    (training, state), (part, change) = training, FAULTS[fault]
    before = training.run.verdict.read_text()
    plant(FILES[part], change)
    with pytest.raises(RunError) as raised:
        finish(training, state)
    said = str(raised.value)
    assert "\n" not in said and f"model/{part}" in said and "nothing was replaced" in said
    assert (
        find_corruption(training.run.model) is None and training.run.verdict.read_text() == before
    )


@pytest.mark.parametrize("fault", EXPORT_FAULTS)
def test_the_end_of_05_catches_a_fault_in_what_it_wrote(training, plant, monkeypatch, place, fault):
    monkeypatch.chdir(place)
    (training, _), (name, change) = training, EXPORT_FAULTS[fault]
    shutil.rmtree(training.run.export, ignore_errors=True)
    plant(name, change)
    with pytest.raises(RunError) as raised:
        export(training.run)
    said = str(raised.value)
    assert "\n" not in said and f"export/{name}" in said and not training.run.export.exists()
    assert find_corruption(training.run.model) is None
    export(training.run)
    assert find_corruption(training.run.export) is None
