"""Trainings of narrow models in the true shapes of Stable Diffusion 1 and 2, and what each must come to."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from helpers.config import TrainConfig, configure
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.inference.share.one_file import export, original_state
from helpers.train import checkpoint
from helpers.train.model import ModelComponents, load_components, make_trainable
from helpers.train.portable import write_text_encoder_names, write_tokenizer
from helpers.train.trainer import train
from tests.bases import make_base
from tests.conftest import SMALL_TRAINING, make_dataset, photograph

WIDTHS, CONTEXT = (
    (32, 64, 128, 128),
    64,
)  # a tenth of Stable Diffusion's; its levels and layers are true
SHAPE = {
    "attends": (True, True, True, False),
    "widths": WIDTHS,
    "layers": 2,
    "context": CONTEXT,
    "norm_groups": 32,
    "vae_widths": WIDTHS,
}
V1 = SHAPE | {"heads": 8, "text_layers": 12}
V2 = SHAPE | {"heads": 2, "text_layers": 23, "is_v2": True}
VELOCITY = {"prediction_type": "v_prediction"}
LORA = {"method": "lora", "rank": 4, "learning_rate": 0.05}
TEXT = {"train_text_encoder": True, "text_encoder_lr": 0.05}
PROMPT = "a turtle character dressed as teacher, standing next to a chalkboard"


@dataclass(frozen=True)
class Case:
    """A training, by its base's shape and its settings."""

    name: str
    shape: dict
    settings: dict
    is_v2: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_v2", self.shape.get("is_v2", False))


CASES = (
    Case("sd1-full", V1, {"learning_rate": 0.01} | TEXT),
    Case("sd1-full-v", V1 | VELOCITY, {"learning_rate": 0.01}),
    Case("sd1-lora", V1, LORA | {"lora_targets": "attention", "lora_alpha": 4}),
    Case("sd1-lora-all", V1, LORA | TEXT | {"lora_targets": "attention_ff_conv", "lora_alpha": 1}),
    Case("sd2-full-v", V2 | VELOCITY | {"zero_snr": True}, {"learning_rate": 0.01} | TEXT),
    Case("sd2-lora", V2, LORA | TEXT | {"lora_targets": "attention_ff", "lora_alpha": 16}),
)


def make_case(case: Case, folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """Train and export a case in the working folder; what loaders get lies in `folder`.

    model/, export/  as a run leaves them
    base.safetensors what a LoRA is put onto
    truth.safetensors inputs, and what the trained modules make of them
    case.json        what a loader must know to build so narrow a model
    """
    for i in range(6):
        photograph(Path(f"in/{i}.jpg"), i).with_suffix(".txt").write_text(f"thing {i}")
    run = make_dataset(case.name, Path("in"))
    base = make_base(folder / "base", **case.shape, tokenizer=tokenizer)
    write_tokenizer(tokenizer, base / "tokenizer")  # as the bases that people have are written
    write_text_encoder_names(base / "text_encoder/model.safetensors")
    quick = {"max_steps": 2, "validate_every_steps": 2, "prior_share": 0.0, "lr_warmup_steps": 0}
    quick |= {"prompts": ("a cat",), "num_inference_steps": 1}
    given = {"run": case.name, "base_model": str(base), "resolution_px": 64, "method": "full"}
    config = configure(TrainConfig, SMALL_TRAINING | quick | given | case.settings)
    for _ in train(config, run):
        pass
    export(run)
    save_file(
        {k: v.contiguous() for k, v in original_state(base).items()}, folder / "base.safetensors"
    )
    truth = {name: tensor.contiguous() for name, tensor in _truth(config, run).items()}
    save_file(truth, folder / "truth.safetensors")
    told = {
        "name": case.name,
        "is_v2": case.is_v2,
        "predicts_velocity": "prediction_type" in case.shape,
        "has_lora": config.method == "lora",
        "widths": WIDTHS,
        "heads": case.shape["heads"],
        "context": CONTEXT,
        "text_layers": case.shape["text_layers"],
    }
    (folder / "case.json").write_text(json.dumps(told))
    for name in ("model", "export"):
        shutil.move(run.folder / name, folder / name)
    return folder


@torch.no_grad()
def _truth(config: TrainConfig, run: Run) -> dict[str, torch.Tensor]:
    """Inputs, and the outputs of the trained modules: the last checkpoint's tensors in the base."""
    parts = load_components(config.base_model, pick_device(), config.train_text_encoder)
    trained = make_trainable(parts, config, torch.float32)
    checkpoint.load_weights(run.checkpoint(config.max_steps), trained.trained_weights())
    return effects(parts)


def effects(parts: ModelComponents) -> dict[str, torch.Tensor]:
    """ids (2, 77), latents (2, 4, 8, 8) and timesteps (2,), and from them words, noise and pixels."""
    source = torch.Generator().manual_seed(5)
    ids = parts.tokenizer([PROMPT, ""], padding="max_length", return_tensors="pt").input_ids
    latents = torch.randn(2, 4, 8, 8, generator=source)
    timesteps = torch.tensor([10, 700])
    words = parts.text_encoders["text_encoder"].eval()(ids).last_hidden_state
    return {
        "ids": ids,
        "latents": latents,
        "timesteps": timesteps,
        "words": words,
        "noise": parts.denoiser.eval()(latents, timesteps, words).sample,
        "pixels": parts.vae.eval().decode(latents).sample,
    }
