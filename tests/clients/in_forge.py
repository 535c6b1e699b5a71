"""Run in Forge's environment: its own loader of checkpoints, and of LoRAs."""
# ruff: noqa: E402, a program is found by the path that is given

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.clients.loader import Found, narrow_unet, read_case

program = Path(sys.argv[1])
case, truth = read_case(sys.argv[2])
found = Found(truth)
IS_XL = case["family"] == "sdxl"
sys.argv = ["forge", "--always-cpu", "--all-in-fp32", "--clip-in-fp32", "--vae-in-fp32"]
sys.path[:0] = [str(program), str(program / "packages_3rdparty")]
os.chdir(program)

# its web interface is not loaded: of its settings the engines read one
sys.modules["modules.shared"] = SimpleNamespace(opts=SimpleNamespace(emphasis="Original"))

import backend.args
import torch
from backend import loader
from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet
from backend.utils import load_torch_file
from huggingface_guess import model_list

backend.args.dynamic_args |= {"embedding_dir": "", "emphasis_name": "Original"}
# what its own loader ignores (SDXL's projection is in its pooled text), and the last layer of Stable Diffusion 2's text
# encoder, which its config leaves out
UNUSED = ("logit_scale", "text_projection.weight", "position_ids")
UNUSED += (".layers.23.",) if case["family"] == "sd2" else ()


def narrow(folder: Path) -> None:
    """Its sizes are those of the models that it knows, and of configs that it brings: here the model's own."""
    names = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}
    kind = getattr(model_list, names[case["family"]])
    narrow_unet(kind, case)
    place = folder / "huggingface" / kind.huggingface_repo
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(case["folder"])
    loader.dir_path = str(folder)


def hear_unmatched(file: str) -> None:
    """Its load_state_dict prints what is missing or too many; here that is counted."""

    def load_state_dict(model, tensors, ignore_errors=(), log_name=None, ignore_start=None):
        told = model.load_state_dict(tensors, strict=False)
        names = [*told.missing_keys, *told.unexpected_keys]
        found.unmatched(
            file, [name for name in names if not any(unused in name for unused in UNUSED)]
        )

    loader.load_state_dict = load_state_dict


@torch.no_grad()
def compare(file: str, engine: object) -> None:
    model, given = engine.forge_objects.unet.model, {}
    if IS_XL:
        first = engine.text_processing_engine_l.encode_with_transformers(truth["input_ids"])
        second = engine.text_processing_engine_g.encode_with_transformers(truth["input_ids_2"])
        words = torch.cat([first, second], -1)
        found.compare(file, "pooled", second.pooled)
        sizes = [engine.embedder(numbers).flatten() for numbers in truth["time_ids"]]
        given["y"] = torch.cat([second.pooled, torch.stack(sizes)], 1)
    else:
        encoder = engine.forge_objects.clip.cond_stage_model
        encoder = encoder.clip_h if case["family"] == "sd2" else encoder.clip_l
        output = encoder.transformer(truth["input_ids"], output_hidden_states=True)
        words = encoder.transformer.text_model.final_layer_norm(output.hidden_states[-1])
    found.compare(file, "words", words)
    noise = model.diffusion_model(truth["latents"], truth["timesteps"].float(), words, **given)
    found.compare(file, "noise", noise)


def merge(patcher: object, tensors: dict, keys: dict, name: str) -> dict:
    """Put a LoRA's weights into a model as Forge does; what is left over."""
    patches, rest = load_lora(tensors, keys)
    patcher.add_patches(filename=name, patches=patches, strength_patch=1.0, online_mode=False)
    patcher.refresh_loras()
    return rest


narrow(Path(case["folder"]).parent / "forge")
with found.loading("model"):
    hear_unmatched("model")
    engine = loader.forge_loader(case["model"])
    compare("model", engine)
    with torch.no_grad():
        pixels = engine.forge_objects.vae.first_stage_model.decode(truth["latents"])
    found.compare("model", "pixels", pixels)
    kind = engine.forge_objects.unet.model.predictor.prediction_type
    assert kind == ("v_prediction" if case["predicts_velocity"] else "epsilon"), kind
    assert engine.model_config.ztsnr == case["has_zero_snr"]
for file, lora in case["loras"].items():
    with found.loading(file):
        hear_unmatched(file)
        engine = loader.forge_loader(case["base"])
        unet, clip = engine.forge_objects.unet, engine.forge_objects.clip
        tensors = load_torch_file(lora, safe_load=True)
        rest = merge(unet, tensors, model_lora_keys_unet(unet.model, {}), lora)
        keys = model_lora_keys_clip(clip.cond_stage_model, {})
        rest = merge(clip.patcher, rest, keys, lora)
        found.unmatched(file, rest)
        compare(file, engine)
found.tell()
