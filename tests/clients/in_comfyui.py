"""Run in ComfyUI's environment: its own loader of checkpoints, which guesses the model, and of LoRAs."""
# ruff: noqa: E402, a program is found by the path that is given

import logging
import sys
from functools import partial
from pathlib import Path

from tests.clients.loader import Found, narrow_unet, read_case

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
IS_XL = case["family"] == "sdxl"
KIND = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}[case["family"]]  # as it calls them
ENCODERS = {"sd1": ["clip_l"], "sd2": ["clip_h"], "sdxl": ["clip_l", "clip_g"]}[case["family"]]
CLIP = {f"{n}_model_config": text for n, text in zip(ENCODERS, case["texts"], strict=True)}
TELLS = ("missing", "unexpected", "leftover", "left over", "not loaded")
# as its own filter of them; SDXL's projection is in its pooled text
UNUSED = ("logit_scale", "text_projection", "position_ids")


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
    narrow_unet(getattr(comfy.supported_models, KIND), case)
    sizes = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    sizes |= {"ch": case["vae_width"], "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    sizes |= {"attn_resolutions": [], "dropout": 0.0}
    config = {"params": {"ddconfig": sizes, "embed_dim": 4}}
    comfy.sd.VAE = partial(comfy.sd.VAE, config=config)


def load(path: str) -> tuple:
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(path, te_model_options=CLIP)
    return model, clip, vae


@torch.no_grad()
def compare(file: str, model: object, clip: object) -> None:
    comfy.model_management.load_models_gpu([model, clip.patcher], force_full_load=True)
    ids = [truth[name].tolist() for name in ("input_ids", "input_ids_2") if name in truth]
    encoders = [getattr(clip.cond_stage_model, name) for name in ENCODERS]
    encoded = [encoder(each) for encoder, each in zip(encoders, ids, strict=True)]
    words, given = torch.cat([words for words, _ in encoded], -1), {}
    found.compare(file, "words", words)
    if IS_XL:
        pooled = encoded[-1][1]
        found.compare(file, "pooled", pooled)
        both = zip(pooled.split(1), truth["time_ids"], strict=True)
        given["y"] = torch.cat([sizes(model.model, *each) for each in both])
    noise = model.model.diffusion_model(
        truth["latents"], truth["timesteps"].float(), words, **given
    )
    found.compare(file, "noise", noise)


def sizes(model: object, pooled: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Its own vector of a picture's pooled text and sizes."""
    names = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
    return model.encode_adm(pooled_output=pooled, **dict(zip(names, numbers.tolist(), strict=True)))


narrow()
has_yaml = case["predicts_velocity"] and not IS_XL
with found.loading("model"):
    model, clip, vae = load(case["model"])
    compare("model", model, clip)
    found.compare("model", "pixels", vae.first_stage_model.decode(truth["latents"]))
    found.unmatched("model", unmatched())
    assert type(model.model.model_config).__name__ == KIND
    assert Path(case["yaml"]).is_file() == has_yaml
    if IS_XL:
        sampling = model.get_model_object("model_sampling")
        is_velocity = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        assert is_velocity == case["predicts_velocity"], type(sampling).__mro__
        assert sampling.zsnr == case["has_zero_snr"], sampling.zsnr
if has_yaml:
    with found.loading("yaml"):
        real = comfy.sd.load_checkpoint_guess_config
        comfy.sd.load_checkpoint_guess_config = partial(real, te_model_options=CLIP)
        model, _, _ = comfy.sd.load_checkpoint(case["yaml"], case["model"])
        sampling = model.get_model_object("model_sampling")
        assert isinstance(sampling, comfy.model_sampling.V_PREDICTION), type(sampling)
    comfy.sd.load_checkpoint_guess_config = real
    heard.lines.clear()
for file, lora in case["loras"].items():
    with found.loading(file):
        model, clip, _ = load(case["base"])
        heard.lines.clear()
        tensors = comfy.utils.load_torch_file(lora, safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(model, clip, tensors, 1.0, 1.0)
        found.unmatched(file, unmatched())
        compare(file, model, clip)
found.tell()
