"""Run in sd-scripts' environment: its own loader of checkpoints, and its own network of a LoRA."""
# ruff: noqa: E402, a program is found by the path that is given

import sys

from tests.clients.loader import Found, read_case

sys.path.insert(0, sys.argv[1])

import networks.lora
import torch
from library import model_util, original_unet

case, truth = read_case(sys.argv[2])
found = Found(truth)


def narrow() -> None:
    """Its sizes are constants of its modules."""
    original_unet.BLOCK_OUT_CHANNELS = tuple(case["widths"])
    original_unet.TIMESTEP_INPUT_DIM = case["widths"][0]
    original_unet.TIME_EMBED_DIM = 4 * case["widths"][0]
    model_util.UNET_PARAMS_MODEL_CHANNELS = model_util.VAE_PARAMS_CH = case["widths"][0]
    model_util.UNET_PARAMS_CONTEXT_DIM = model_util.V2_UNET_PARAMS_CONTEXT_DIM = case["context"]
    heads = [width * case["heads"] // case["widths"][0] for width in case["widths"]]
    model_util.V2_UNET_PARAMS_ATTENTION_HEAD_DIM = heads
    make = model_util.CLIPTextConfig
    sizes = {"hidden_size": case["context"], "intermediate_size": 4 * case["context"]}
    sizes |= {"num_attention_heads": 2, "projection_dim": case["context"]}
    model_util.CLIPTextConfig = lambda **given: make(**given | sizes)


def load(path: str) -> tuple:
    return model_util.load_models_from_stable_diffusion_checkpoint(case["is_v2"], path)


@torch.no_grad()
def compare(file: str, text_encoder: torch.nn.Module, unet: torch.nn.Module) -> torch.Tensor:
    words = text_encoder.eval()(truth["ids"]).last_hidden_state
    found.compare(file, "words", words)
    noise = unet.eval()(truth["latents"], truth["timesteps"], words)
    found.compare(file, "noise", noise.sample)


narrow()
with found.loading("model"):  # it loads strictly: a key too many or too few is an error
    text_encoder, vae, unet = load(case["model"])
    compare("model", text_encoder, unet)
    with torch.no_grad():
        found.compare("model", "pixels", vae.eval().decode(truth["latents"]).sample)
if case["has_lora"]:
    with found.loading("lora"):
        text_encoder, vae, unet = load(case["base"])
        network, tensors = networks.lora.create_network_from_weights(
            1.0, case["lora"], vae, text_encoder, unet, for_inference=True
        )
        network.apply_to(text_encoder, unet)
        told = network.load_state_dict(tensors, strict=False)
        found.unmatched("lora", [*told.missing_keys, *told.unexpected_keys])
        compare("lora", text_encoder, unet)
found.tell()
