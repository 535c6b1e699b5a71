"""Run in each program's environment: SDXL at its full size, by names and shapes alone.

Nothing is made narrow, so that what a program tells SDXL by, and builds, is its own. The tensors lie on the meta device
and hold no numbers. `python -m tests.clients.full_size PROGRAM PATH FOLDER`
"""
# ruff: noqa: PLC0415, a program is found by the path that is given

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

from tests.clients.loader import Found

# isort: split
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
META = torch.device("meta")
UNET = "model.diffusion_model."
UNUSED = ("logit_scale", "position_ids", "clip_l.transformer.text_projection.weight")
found = Found({})


def read(path: Path) -> dict[str, State]:
    """The tensors of each file; those with one number, such as alpha, are real."""
    files = json.loads(path.read_text())
    return {file: {n: empty(shape) for n, shape in named.items()} for file, named in files.items()}


def empty(shape: list[int]) -> Tensor:
    return torch.empty(shape, device=META) if shape else torch.tensor(1.0)


def compare(file: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Names that are only in one of both, or have another shape."""
    shapes = [{(n, tuple(t.shape)) for n, t in state.items()} for state in (given, wanted)]
    names = {name for name, _ in shapes[0] ^ shapes[1]}
    found.unmatched(file, [name for name in names if not name.endswith(UNUSED)])
    found.note(file, f"{len(shapes[0] & shapes[1])} tensors of {file} match")


def under(state: State, prefix: str) -> State:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def compare_lora(file: str, changed: Iterable[tuple[str, Tensor, Tensor]], own: State) -> None:
    """The shapes of what a LoRA adds to weights, each given by name, up and down."""
    wrong, seen = [], 0
    for name, up, down in changed:
        fits = size((len(up), *down.shape[1:])) == size(own[name].shape)
        seen += fits
        wrong += [] if fits else [name]
    found.unmatched(file, wrong)
    found.note(file, f"{seen} layers of {file} find their weight")


def size(shape: Iterable[int]) -> tuple[int, ...]:
    """A weight's shape; a convolution of 1 x 1 is as a linear layer."""
    out, into, *kernel = shape
    return (out, into, *kernel) if set(kernel) - {1} else (out, into)


def sd_scripts(files: dict[str, State]) -> None:
    import networks.lora
    from library import sdxl_model_util

    sdxl_model_util.load_file = lambda *_, **__: dict(files["model"])
    version = sdxl_model_util.MODEL_VERSION_SDXL_BASE_V1_0
    with found.loading("model"):  # it loads strictly
        first, second, vae, unet, *_ = sdxl_model_util.load_models_from_sdxl_checkpoint(
            version, "model.safetensors", META
        )
        parts = sum(len(part.state_dict()) for part in (first, second, vae, unet))
        found.note("model", f"{parts} tensors of its modules are filled")
    for file in ("lora", "blocks"):
        with found.loading(file):
            network, tensors = networks.lora.create_network_from_weights(
                1.0, "", vae, [first, second], unet, dict(files[file]), for_inference=True
            )
            network.apply_to([first, second], unet)
            compare(file, tensors, network.state_dict())


def comfyui(files: dict[str, State]) -> None:
    from comfy.cli_args import args

    args.cpu = args.force_fp32 = args.fp32_text_enc = True
    import comfy.lora
    import comfy.model_detection

    with found.loading("model"):
        state = dict(files["model"])
        config = comfy.model_detection.model_config_from_unet(state, UNET)
        assert type(config).__name__ == "SDXL", type(config)
        model = config.get_model(state, UNET, device=META)
        compare("model", under(state, UNET), model.diffusion_model.state_dict())
        clip = config.clip_target().clip(device=META, dtype=torch.float32)
        compare("model", config.process_clip_state_dict(state), clip.state_dict())
    own = model.state_dict() | clip.state_dict()
    for file in ("lora", "blocks"):
        with found.loading(file):
            keys = comfy.lora.model_lora_keys_unet(model, {})
            keys = comfy.lora.model_lora_keys_clip(clip, keys)
            patches = comfy.lora.load_lora(files[file], keys)
            used = {name for adapter in patches.values() for name in adapter.loaded_keys}
            found.unmatched(file, files[file].keys() - used - alphas(files[file]))
            compare_lora(file, ((n, *a.weights[:2]) for n, a in patches.items()), own)


def alphas(lora: State) -> set[str]:
    return {name for name in lora if name.endswith(".alpha")}


def forge(files: dict[str, State]) -> None:
    program = Path(sys.argv[2])
    sys.argv = ["forge", "--always-cpu"]
    os.chdir(program)
    sys.modules["modules.shared"] = SimpleNamespace(opts=SimpleNamespace(emphasis="Original"))
    from backend import loader
    from backend.nn.clip import IntegratedCLIP
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import IntegratedAutoencoderKL
    from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet
    from transformers import CLIPTextConfig, CLIPTextModel
    from transformers.modeling_utils import no_init_weights

    loader.load_torch_file = lambda _: dict(files["model"])
    with found.loading("model"):
        states, guess = loader.split_state_dict("model.safetensors")
        assert type(guess).__name__ == "SDXL", type(guess)
        brought = program / "backend/huggingface" / guess.huggingface_repo
        # torch's own layers: Forge's take whatever shape a file has
        with META, no_init_weights():
            unet = IntegratedUNet2DConditionModel.from_config(guess.unet_config)
            config = IntegratedAutoencoderKL.load_config(brought / "vae")
            vae = IntegratedAutoencoderKL.from_config(config)
            texts = {
                part: IntegratedCLIP(
                    CLIPTextModel, CLIPTextConfig.from_pretrained(brought / place), True
                )
                for part, place in guess.clip_target.items()
            }
        modules = {guess.unet_target: unet, guess.vae_target: vae}
        modules |= {guess.clip_target[part]: text for part, text in texts.items()}
        for part, module in modules.items():
            # its config of the first encoder has a projection, which is not used
            own = module.state_dict()
            if part == "text_encoder":
                own.pop("transformer.text_projection.weight")
            compare("model", states[part], own)
    model, clip = nn.Module(), nn.ModuleDict(texts)
    model.diffusion_model, model.config = unet, guess
    unet._internal_dict = guess.unet_config
    own = model.state_dict() | clip.state_dict()
    for file in ("lora", "blocks"):
        with found.loading(file):
            patches, rest = load_lora(files[file], model_lora_keys_unet(model, {}))
            more, rest = load_lora(rest, model_lora_keys_clip(clip, {}))
            found.unmatched(file, rest)
            factors = ((n, *patch[1][:2]) for n, patch in (patches | more).items())
            compare_lora(file, factors, own)


PROGRAMS = {"sd-scripts": sd_scripts, "comfyui": comfyui, "forge": forge}
if __name__ == "__main__":
    which, place, folder = sys.argv[1:]
    sys.path[:0] = [place, f"{place}/packages_3rdparty"]
    PROGRAMS[which](read(Path(folder) / "shapes.json"))
    found.tell()
