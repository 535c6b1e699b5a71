"""Run in sd-scripts' environment: its own loader of checkpoints, and its own network of a LoRA."""
# ruff: noqa: E402, a program is found by the path that is given

import sys
from types import SimpleNamespace

from tests.clients.loader import Found, read_case

sys.path.insert(0, sys.argv[1])

import networks.lora
import torch
from library import (
    model_util,
    original_unet,
    sdxl_model_util,
    sdxl_original_unet,
    sdxl_train_util,
    strategy_sdxl,
)

case, truth = read_case(sys.argv[2])
found = Found(truth)
IS_XL = case["family"] == "sdxl"
WIDE_SECOND = 1280  # its second text encoder
# what it asks of tokenizers once a text is encoded
TOKENS = SimpleNamespace(model_max_length=77, eos_token_id=int(truth["input_ids"].max()))


def narrow() -> None:
    """Its sizes are constants of its modules."""
    width = case["widths"][0]
    model_util.VAE_PARAMS_CH = case["vae_width"]
    make = model_util.CLIPTextConfig

    def narrow_text(**given: object) -> object:
        return make(**given | case["texts"][IS_XL and given["hidden_size"] == WIDE_SECOND])

    model_util.CLIPTextConfig = sdxl_model_util.CLIPTextConfig = narrow_text
    if IS_XL:
        narrow_sdxl(width)
        return
    original_unet.BLOCK_OUT_CHANNELS = tuple(case["widths"])
    original_unet.TIMESTEP_INPUT_DIM = width
    original_unet.TIME_EMBED_DIM = 4 * width
    model_util.UNET_PARAMS_MODEL_CHANNELS = width
    model_util.UNET_PARAMS_CONTEXT_DIM = model_util.V2_UNET_PARAMS_CONTEXT_DIM = case["context"]
    heads = [each * case["heads"] // width for each in case["widths"]]
    model_util.V2_UNET_PARAMS_ATTENTION_HEAD_DIM = heads


def narrow_sdxl(width: int) -> None:
    """SDXL's text width is no constant: it is given to each transformer, by a number in the code."""
    sdxl_original_unet.MODEL_CHANNELS, sdxl_original_unet.TIME_EMBED_DIM = width, 4 * width
    sdxl_original_unet.ADM_IN_CHANNELS = case["pooled_and_sizes"]
    wide = sdxl_original_unet.Transformer2DModel

    class Transformer2DModel(wide):  # of the same name, by which its LoRAs look for layers
        def __init__(self, **given: object) -> None:
            super().__init__(**given | {"cross_attention_dim": case["context"]})

    sdxl_original_unet.Transformer2DModel = Transformer2DModel


def load(path: str) -> tuple[list[torch.nn.Module], torch.nn.Module, torch.nn.Module]:
    """Text encoders, VAE and UNet. It loads strictly: a key too many or too few is an error."""
    if IS_XL:
        version = sdxl_model_util.MODEL_VERSION_SDXL_BASE_V1_0
        first, second, vae, unet, *_ = sdxl_model_util.load_models_from_sdxl_checkpoint(
            version, path, "cpu"
        )
        return [first.eval(), second.eval()], vae.eval(), unet.eval()
    is_v2 = case["family"] == "sd2"
    encoder, vae, unet = model_util.load_models_from_stable_diffusion_checkpoint(is_v2, path)
    return [encoder.eval()], vae.eval(), unet.eval()


@torch.no_grad()
def compare(file: str, encoders: list[torch.nn.Module], unet: torch.nn.Module) -> None:
    if IS_XL:
        compare_sdxl(file, encoders, unet)
        return
    words = encoders[0](truth["input_ids"]).last_hidden_state
    found.compare(file, "words", words)
    noise = unet(truth["latents"], truth["timesteps"], words)
    found.compare(file, "noise", noise.sample)


def compare_sdxl(file: str, encoders: list[torch.nn.Module], unet: torch.nn.Module) -> None:
    """Its pooled text is compared with the projection transposed: it takes that of all SDXL files as it lies there.

    The noise is what becomes of its own words and sizes, and of the trained pooled text.
    """
    ids = truth["input_ids"][:, None], truth["input_ids_2"][:, None]
    encode = strategy_sdxl.SdxlTextEncodingStrategy()._get_hidden_states_sdxl
    first, second, pooled = encode(*ids, TOKENS, TOKENS, *encoders)
    words = torch.cat([first, second], -1)
    found.compare(file, "words", words)
    as_read = found.difference(file, "pooled", pooled)
    found.note(file, f"pooled text is {as_read:.1e} off as it reads it, untransposed")
    projection = encoders[1].text_projection.weight
    projection.data = projection.data.T.contiguous()
    _, _, pooled = encode(*ids, TOKENS, TOKENS, *encoders)
    found.compare(file, "pooled", pooled)
    original, crop, target = truth["time_ids"].split(2, dim=1)
    sizes = sdxl_train_util.get_size_embeddings(original, crop, target, "cpu")
    pooled_and_sizes = torch.cat([found.truth_of(file, "pooled"), sizes], 1)
    noise = unet(truth["latents"], truth["timesteps"], words, pooled_and_sizes)
    found.compare(file, "noise", noise)


narrow()
with found.loading("model"):
    encoders, vae, unet = load(case["model"])
    compare("model", encoders, unet)
    with torch.no_grad():
        found.compare("model", "pixels", vae.decode(truth["latents"]).sample)
for file, lora in case["loras"].items():
    with found.loading(file):
        encoders, vae, unet = load(case["base"])
        texts = encoders if IS_XL else encoders[0]
        network, tensors = networks.lora.create_network_from_weights(
            1.0, lora, vae, texts, unet, for_inference=True
        )
        network.apply_to(texts, unet)
        told = network.load_state_dict(tensors, strict=False)
        found.unmatched(file, [*told.missing_keys, *told.unexpected_keys])
        compare(file, encoders, unet)
found.tell()
