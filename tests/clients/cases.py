"""Trainings of narrow models in the true blocks of Stable Diffusion 1, 2 and XL, and what each must come to."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from helpers.config import InferenceConfig, TrainConfig, configure
from helpers.core.files import read_json
from helpers.core.run import Run
from helpers.host.device import pick_device
from helpers.inference.draw.sampler import Sampler
from helpers.inference.share.one_file import export, original_state
from helpers.models.families import Components, weights_file
from helpers.models.lora import LORA_FILE
from helpers.train import checkpoint
from helpers.train.model import load_components, make_trainable
from helpers.train.portable import write_text_encoder_names, write_tokenizer
from helpers.train.trainer import train
from tests.bases import SdxlShape, make_base, make_sdxl
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
NARROW_XL = SdxlShape(  # of SDXL's own: depths, head width 64, embeddings of sizes, text layers
    widths=WIDTHS[:3],
    depths=(1, 2, 10),
    heads=(1, 1, 2),
    size_width=256,
    text_widths=(64, 96),
    text_layers=(12, 32),
    text_heads=2,
    vae_widths=WIDTHS,
    norm_groups=32,
)
XL = {"shape": NARROW_XL}
VELOCITY = {"prediction_type": "v_prediction"}
FULL = {"method": "full", "learning_rate": 0.01}
LORA = {"method": "lora", "rank": 4, "learning_rate": 0.05}
TEXT = {"train_text_encoder": True, "text_encoder_lr": 0.05}
PROMPT = "a turtle character dressed as teacher, standing next to a chalkboard"
SIZES = (  # original height and width, crop top and left, target height and width, of two pictures
    ((1024, 1024), (0, 0), (1024, 1024)),
    ((3021, 2047), (16, 48), (896, 1152)),
)
SEEN = 1e-2  # what is trained changes an output by more, so that weights that are not read are seen
OF_TEXT = ("hidden_size", "intermediate_size", "num_attention_heads", "projection_dim")


@dataclass(frozen=True)
class Case:
    """A training, by its family, its base's shape and its settings; and the rank of a light LoRA of it."""

    name: str
    family: str
    shape: dict[str, Any]
    settings: dict[str, Any]
    light_rank: int = 0


CASES = (
    Case("sd1-full", "sd1", V1, FULL | TEXT, light_rank=8),
    Case("sd1-full-v", "sd1", V1 | VELOCITY, FULL),
    Case("sd1-lora", "sd1", V1, LORA | {"lora_targets": "attention", "lora_alpha": 4}),
    Case(
        *("sd1-lora-all", "sd1", V1),
        LORA | TEXT | {"lora_targets": "attention_ff_conv", "lora_alpha": 1},
    ),
    Case("sd2-full-v", "sd2", V2 | VELOCITY | {"zero_snr": True}, FULL | TEXT),
    Case(
        *("sd2-lora", "sd2", V2),
        LORA | TEXT | {"lora_targets": "attention_ff", "lora_alpha": 16},
    ),
    Case("sdxl-full", "sdxl", XL, FULL | TEXT),
    Case("sdxl-lora", "sdxl", XL, LORA | {"lora_targets": "attention", "lora_alpha": 4}),
    Case(
        *("sdxl-lora-all", "sdxl", XL),
        LORA | TEXT | {"lora_targets": "attention_ff_conv", "lora_alpha": 1},
    ),
    Case("sdxl-lora-v", "sdxl", XL | VELOCITY, LORA | {"lora_targets": "attention_ff"}),
    Case(
        *("sdxl-lora-all-v", "sdxl", XL | VELOCITY),
        LORA | TEXT | {"lora_targets": "attention_ff_conv", "lora_alpha": 16},
    ),
)


def make_case(case: Case, folder: Path, tokenizer: CLIPTokenizer) -> Path:
    """Train and export a case in the working folder; what loaders get lies in `folder`.

    model/, export/  as a run leaves them
    base.safetensors what a LoRA is put onto
    truth.safetensors inputs, and what the trained modules make of them
    case.json        what a loader must know to build so narrow a model, and the LoRAs in export/
    """
    for i in range(6):
        photograph(Path(f"in/{i}.jpg"), i).with_suffix(".txt").write_text(f"thing {i}")
    run = make_dataset(case.name, Path("in"))
    base = _make_base(case, folder / "base", tokenizer)
    quick = {"max_steps": 2, "validate_every_steps": 2, "prior_share": 0.0, "lr_warmup_steps": 0}
    quick |= {"prompts": ("a cat",), "num_inference_steps": 1}
    given = {"run": case.name, "base_model": str(base), "resolution_px": 64}
    config = configure(TrainConfig, SMALL_TRAINING | quick | given | case.settings)
    for _ in train(config, run):
        pass
    asked = {"run": case.name, "one_file": "yes", "lora_rank": case.light_rank}
    inference = configure(InferenceConfig, asked)
    sampler = Sampler(run) if case.light_rank else None
    export(run, inference, sampler)
    _save(original_state(base), folder / "base.safetensors")
    truth = _trained(config, run)
    if sampler:
        truth |= {f"light.{name}": tensor for name, tensor in _light(sampler, inference).items()}
    _save(truth, folder / "truth.safetensors")
    (folder / "case.json").write_text(json.dumps(_tell(case, config, base)))
    for name in ("model", "export"):
        shutil.move(run.folder / name, folder / name)
    return folder


def _make_base(case: Case, folder: Path, tokenizer: CLIPTokenizer) -> Path:
    make = make_sdxl if case.family == "sdxl" else make_base
    make(folder, **case.shape, tokenizer=tokenizer)
    for place in folder.glob("tokenizer*"):  # as the bases that people have are written
        write_tokenizer(CLIPTokenizer.from_pretrained(place), place)
    for place in folder.glob("text_encoder*"):
        write_text_encoder_names(place / weights_file(place.name))
    return folder


def _tell(case: Case, config: TrainConfig, base: Path) -> dict[str, Any]:
    """Return what a loader must know of a case."""
    unet = read_json(base / "unet/config.json")
    texts = [read_json(place) for place in sorted(base.glob("text_encoder*/config.json"))]
    schedule = read_json(base / "scheduler/scheduler_config.json")
    name, light = case.name, f"rank{case.light_rank}"
    loras, diffusers_loras = {}, {}  # each by the name of its row
    if config.method == "lora":
        loras["lora"] = f"{name}-lora.safetensors"
        if case.family == "sdxl":
            loras["blocks"] = f"{name}-lora-blocks.safetensors"
        if config.lora_alpha in (0, config.rank):  # diffusers before 0.34 takes no other
            diffusers_loras["diffusers/"] = f"diffusers/{LORA_FILE}"
    if case.light_rank:
        loras["light"] = f"{name}-lora-{light}.safetensors"
        diffusers_loras["light/"] = f"diffusers-{light}/{LORA_FILE}"
    return {
        "name": name,
        "prompt": PROMPT,
        "family": case.family,
        "predicts_velocity": schedule["prediction_type"] == "v_prediction",
        "has_zero_snr": bool(schedule.get("rescale_betas_zero_snr")),
        "loras": loras,
        "diffusers_loras": diffusers_loras,
        "widths": unet["block_out_channels"],
        "heads": case.shape.get("heads"),
        "context": unet["cross_attention_dim"],
        "pooled_and_sizes": unet.get("projection_class_embeddings_input_dim"),
        "vae_width": WIDTHS[0],
        "texts": [{key: text[key] for key in OF_TEXT} for text in texts],
    }


def _save(state: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def _trained(config: TrainConfig, run: Run) -> dict[str, Tensor]:
    """Inputs, and the outputs of the trained modules: the last checkpoint's tensors in the base."""
    parts = load_components(config.base_model, pick_device(), config.train_text_encoder)
    before = effects(parts)
    trained = make_trainable(parts, config, torch.float32)
    checkpoint.load_weights(run.checkpoint(config.max_steps), trained.trained_weights())
    after = effects(parts)
    for name in ("words", "noise") if config.train_text_encoder else ("noise",):
        assert (after[name] - before[name]).abs().max() > SEEN, f"{name} is the base's"
    return after


def _light(sampler: Sampler, config: InferenceConfig) -> dict[str, Tensor]:
    """The outputs of what 05 draws as the light LoRA: its factors' product added to the base's weights."""
    sampler.light_lora(config)
    sampler.weights.load("light")
    made = effects(Components.of(sampler.weights.family, sampler.pipeline))
    return {name: made[name] for name in ("words", "noise")}


@torch.no_grad()
def effects(parts: Components) -> dict[str, Tensor]:
    """input_ids (2, 77), latents (2, 4, 8, 8) and timesteps (2,), and from them words, noise and pixels.

    Of SDXL input_ids_2 and time_ids (2, 6) as well, and pooled. The empty prompt is encoded, as all clients encode it.
    """
    source = torch.Generator().manual_seed(5)
    family, encoders = parts.family, list(parts.text_encoders.values())
    for module in parts.modules.values():
        module.eval()
    ids = family.tokenize(list(parts.tokenizers.values()), [PROMPT, ""])
    texts = family.encode_text(encoders, ids, {"force_zeros_for_empty_prompt": False})
    first, second = (family.size_conditioning(*each) for each in SIZES)
    sizes = {name: torch.cat([first[name], second[name]]) for name in first}
    latents, timesteps = torch.randn(2, 4, 8, 8, generator=source), torch.tensor([10, 700])
    return {
        **ids,
        **sizes,
        "latents": latents,
        "timesteps": timesteps,
        "words": texts["encoder_hidden_states"],
        **({"pooled": texts["text_embeds"]} if "text_embeds" in texts else {}),
        "noise": family.predict(parts.denoiser, latents, timesteps, texts | sizes),
        "pixels": parts.vae.decode(latents).sample,
    }
