"""Run in ComfyUI's environment: its own loader of checkpoints, which guesses the model, and of LoRAs."""
# ruff: noqa: E402, a program is found by the path that is given

import logging
import sys
from functools import partial
from pathlib import Path

from tests.clients.loader import Found, read_case

sys.path.insert(0, sys.argv[1])

import torch
from comfy.cli_args import args

args.cpu = args.force_fp32 = args.fp32_text_enc = args.fp32_vae = True

import comfy.model_base
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils

case, truth = read_case(sys.argv[2])
found = Found(truth)
CLIP = {
    "hidden_size": case["context"],
    "intermediate_size": 4 * case["context"],
    "num_attention_heads": 2,
    "projection_dim": case["context"],
}
TELLS = ("missing", "unexpected", "leftover", "left over", "not loaded")
UNUSED = ("logit_scale", "text_projection", "position_ids")  # as its own filter of them


class Unmatched(logging.Handler):
    """The keys that it logs as missing or left over."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if any(word in said.lower() for word in TELLS) and "torchaudio" not in said:
            self.lines.append(said)


heard = Unmatched()
logging.getLogger().addHandler(heard)
logging.getLogger().setLevel(logging.DEBUG)


def unmatched() -> list[str]:
    """The names that were told of so far."""
    said = " ".join(heard.lines)
    heard.lines.clear()
    words = [word.strip("[](){},:'\"") for word in said.split()]
    return [w for w in words if "." in w and not any(name in w for name in UNUSED)]


def narrow() -> None:
    """Its sizes are those of the models that it knows."""
    for kind in (comfy.supported_models.SD15, comfy.supported_models.SD20):
        kind.unet_config |= {"context_dim": case["context"], "model_channels": case["widths"][0]}
    comfy.supported_models.SD15.unet_extra_config["num_heads"] = case["heads"]
    channels = case["widths"][0] // case["heads"]
    comfy.supported_models.SD20.unet_extra_config["num_head_channels"] = channels
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    sizes |= {"ch": case["widths"][0], "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    sizes |= {"attn_resolutions": [], "dropout": 0.0}
    config = {"params": {"ddconfig": sizes, "embed_dim": 4}}
    comfy.sd.VAE = partial(comfy.sd.VAE, config=config)


def load(path: str) -> tuple:
    sizes = {"clip_l_model_config": CLIP, "clip_h_model_config": CLIP}
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, te_model_options=sizes)
    return model, clip, vae


@torch.no_grad()
def compare(file: str, model: object, clip: object) -> None:
    comfy.model_management.load_models_gpu([model, clip.patcher], force_full_load=True)
    encoder = clip.cond_stage_model
    encoder = encoder.clip_h if case["is_v2"] else encoder.clip_l
    words, _ = encoder(truth["ids"].tolist())
    found.compare(file, "words", words)
    noise = model.model.diffusion_model(truth["latents"], truth["timesteps"].float(), words)
    found.compare(file, "noise", noise)


narrow()
with found.loading("model"):
    model, clip, vae = load(case["model"])
    compare("model", model, clip)
    found.compare("model", "pixels", vae.first_stage_model.decode(truth["latents"]))
    found.unmatched("model", unmatched())
    assert type(model.model.model_config).__name__ == ("SD20" if case["is_v2"] else "SD15")
    assert Path(case["yaml"]).is_file() == case["predicts_velocity"]
if case["predicts_velocity"]:
    with found.loading("yaml"):
        real = comfy.sd.load_checkpoint_guess_config
        sizes = {"clip_l_model_config": CLIP, "clip_h_model_config": CLIP}
        comfy.sd.load_checkpoint_guess_config = lambda *given, **more: real(
            *given, **more, te_model_options=sizes
        )
        model, _, _ = comfy.sd.load_checkpoint(case["yaml"], case["model"])
        sampling = model.get_model_object("model_sampling")
        assert isinstance(sampling, comfy.model_sampling.V_PREDICTION), type(sampling)
    heard.lines.clear()
if case["has_lora"]:
    with found.loading("lora"):
        model, clip, _ = load(case["base"])
        heard.lines.clear()
        tensors = comfy.utils.load_torch_file(case["lora"], safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
        found.unmatched("lora", unmatched())
        compare("lora", model, clip)
found.tell()
