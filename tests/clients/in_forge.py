"""Run in Forge's environment: its own loader of checkpoints, and of LoRAs."""
# ruff: noqa: E402, a program is found by the path that is given

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.clients.loader import Found, read_case

program = Path(sys.argv[1])
case, truth = read_case(sys.argv[2])
found = Found(truth)
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
# what its own loader ignores, and the last layer of Stable Diffusion 2's text encoder, which its config leaves out
UNUSED = ("logit_scale", "text_projection.weight", "position_ids", ".layers.23.")


def narrow(folder: Path) -> None:
    """Its sizes are those of the models that it knows, and of configs that it brings: here the model's own."""
    for kind in (model_list.SD15, model_list.SD20):
        kind.unet_config |= {"context_dim": case["context"], "model_channels": case["widths"][0]}
    model_list.SD15.unet_extra_config["num_heads"] = case["heads"]
    channels = case["widths"][0] // case["heads"]
    model_list.SD20.unet_extra_config["num_head_channels"] = channels
    for kind in (model_list.SD15, model_list.SD20):
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
    model = engine.forge_objects.unet.model
    encoder = engine.forge_objects.clip.cond_stage_model
    encoder = encoder.clip_h if case["is_v2"] else encoder.clip_l
    output = encoder.transformer(truth["ids"], output_hidden_states=True)
    words = encoder.transformer.text_model.final_layer_norm(output.hidden_states[-1])
    found.compare(file, "words", words)
    noise = model.diffusion_model(truth["latents"], truth["timesteps"].float(), words)
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
if case["has_lora"]:
    with found.loading("lora"):
        hear_unmatched("lora")
        engine = loader.forge_loader(case["base"])
        unet, clip = engine.forge_objects.unet, engine.forge_objects.clip
        tensors = load_torch_file(case["lora"], safe_load=True)
        rest = merge(unet, tensors, model_lora_keys_unet(unet.model, {}), case["lora"])
        keys = model_lora_keys_clip(clip.cond_stage_model, {})
        rest = merge(clip.patcher, rest, keys, case["lora"])
        found.unmatched("lora", rest)
        compare("lora", engine)
found.tell()
