"""A Stable Diffusion v1 model in its parts, and what it takes to train it here."""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTextModel, CLIPTokenizer

from helpers.config import TrainConfig
from helpers.core.files import read_json, write_json
from helpers.host.device import Device
from helpers.models.capture import CapturedForward
from helpers.models.pipeline import clamp_steps, load_pipeline
from helpers.models.readback import fingerprint
from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code
from helpers.train.check_base import check_files, check_parts, load_model

log = logging.getLogger(__name__)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_TARGETS = {
    "attention": ATTENTION,
    "attention_ff": [*ATTENTION, "ff.net.0.proj", "ff.net.2"],
    "attention_ff_conv": [*ATTENTION, "ff.net.0.proj", "ff.net.2", "conv1", "conv2"],
}
ADVICE = (
    "give a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5, a one-file .safetensors of Stable Diffusion "
    "1 or 2, or a folder in diffusers layout with safetensors weights"
)
RECOMPUTE = {"use_reentrant": False, "preserve_rng_state": False}  # no part drops anything out
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]  # as diffusers' own LoRA training


@dataclass(frozen=True)
class Parts:
    """The parts of a base model. The UNet, or its LoRA, is trained, the text encoder if asked, the VAE never."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    device: Device
    hashes: dict[str, str]  # fingerprints of unet, vae and text_encoder, as they were loaded

    def fingerprints(self) -> dict[str, str]:
        """Of all but the UNet: what makes latents and embeddings, each in its precision, and the noise schedule."""
        schedule = self.noise_scheduler
        kind = f"{schedule.config.prediction_type} {schedule.alphas_cumprod.tolist()}"
        words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return {
            f"VAE ({self.vae.dtype})": self.hashes["vae"],
            f"text encoder ({self.text_encoder.dtype})": self.hashes["text_encoder"],
            "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
            "noise schedule": hashlib.sha256(kind.encode()).hexdigest(),
            "scaling_factor": str(self.vae.config.scaling_factor),
        }

    @property
    def step_px(self) -> int:
        """What an image's sides must be multiples of for the UNet to halve them at every level: 64 for v1."""
        levels = len(self.unet.config.block_out_channels) - 1
        return 2 ** (len(self.vae.config.block_out_channels) - 1 + levels)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Have the frozen encoders on the GPU inside, and out of its memory after."""
        frozen = [self.vae]
        if not any(p.requires_grad for p in self.text_encoder.parameters()):
            frozen.append(self.text_encoder)
        for part in frozen:
            part.to(self.device.device)
        yield
        for part in frozen:
            part.to("cpu")

    @cached_property
    def _forward(self) -> CapturedForward:
        return CapturedForward(self.unet)

    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def draw(
        self,
        config: TrainConfig,
        prompts: list[str],
        generators: list[torch.Generator],
        output_type: str = "pil",
    ) -> Any:
        """Sample prompts with the weights as they are now: pictures, or with `latent` a (N, 4, h, w) tensor.

        Each picture has a generator of its own, so training's random state is left alone.
        """
        was_training = self.unet.training
        self.unet.eval()
        captured = self._forward.installed() if self.device.captures else nullcontext()
        with self.awake(), self.device.autocast(), captured:
            images = self._pipeline()(
                prompts,
                height=config.resolution_px,
                width=config.resolution_px,
                num_inference_steps=clamp_steps(config.num_inference_steps, self.noise_scheduler),
                guidance_scale=config.guidance_scale,
                generator=generators,
                output_type=output_type,
            ).images
        self.unet.train(was_training)
        return images

    def _pipeline(self) -> StableDiffusionPipeline:
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DPMSolverMultistepScheduler.from_config(self.noise_scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # a picture at a time: four at 512 px would take 2.7 GB
        return pipeline


def load_parts(
    base_model: str,
    device: Device,
    train_text_encoder: bool = False,
    train_unet: bool = True,
    known_hashes: Path | None = None,
) -> Parts:
    """Load a base model, checked for all that training and its end need.

    What is trained as a whole is in float32, the rest in the device's dtype. `known_hashes` is where fingerprints are
    kept, so that weights are hashed once. Raises RunError where it is not there, not of safetensors and JSON alone, not
    whole, or its parts do not fit one another.
    """
    text_dtype = torch.float32 if train_text_encoder else device.dtype
    with open_model("base_model", base_model, ADVICE) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype for torch_dtype
        refuse_code(folder)
        check_files(folder)
        vae = load_model(AutoencoderKL, folder, "vae", device.dtype, device.device)
        unet = load_model(UNet2DConditionModel, folder, "unet", torch.float32, device.device)
        text_encoder = load_model(CLIPTextModel, folder, "text_encoder", text_dtype, device.device)
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        fit_tokenizer(tokenizer, text_encoder)
        noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        check_parts(unet, vae, text_encoder, tokenizer, noise_scheduler)
        hashes = _hashes(
            folder, {"unet": unet, "vae": vae, "text_encoder": text_encoder}, known_hashes
        )
        own = {"vae": vae, "unet": unet, "text_encoder": text_encoder, "tokenizer": tokenizer}
        load_pipeline(str(folder), device.dtype, **own)  # as the end will: now, not after hours
    vae.requires_grad_(False).eval()
    text_encoder.requires_grad_(False).eval().to(device.device if train_text_encoder else "cpu")
    if device.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    if not train_unet:  # a LoRA's base: never whole on the GPU
        nn.Module.to(unet, device.dtype)  # a model's own to() warns, of nothing
    unet.to(device.device)
    return Parts(tokenizer, text_encoder, vae, unet, noise_scheduler, device, hashes)


def _hashes(folder: Path, models: dict[str, nn.Module], known: Path | None) -> dict[str, str]:
    """Each model's fingerprint, from `known` where its files have the sizes and times that they had then."""
    kept: dict[str, str] = {}
    if known:
        with suppress(OSError, ValueError):
            kept = read_json(known)
    hashes, found = {}, {}
    for name, model in models.items():
        stats = [path.stat() for path in sorted((folder / name).glob("*.safetensors"))]
        times = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        key = hashlib.sha256(repr((name, model.dtype, times)).encode()).hexdigest()
        hashes[name] = found[key] = kept.get(key) or fingerprint(model)
    if known and found != kept:
        write_json(known, kept | found)
    return hashes


class TextAndUNet(nn.Module):
    """A text encoder and a UNet trained together: takes token ids where a UNet takes their embeddings."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Any:
        """The UNet's output for noisy latents (B, 4, h, w), timesteps (B,) and token ids (B, T)."""
        return self.unet(latents, timesteps, self.text_encoder(ids).last_hidden_state)


def make_trainable(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, config: TrainConfig, dtype: torch.dtype
) -> nn.Module:
    """Unfreeze the UNet, or add a LoRA to it (Hu et al. 2021, arXiv:2106.09685); the text encoder too if asked.

    Returns the module that is trained. Under a LoRA the base's weights are kept in `dtype`.
    """
    unet.requires_grad_(config.method == "full")
    if config.train_text_encoder:
        text_encoder.requires_grad_(config.method == "full").train()
    if config.method == "lora":
        nn.Module.to(unet, dtype)  # a model's own to() warns, of nothing
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            unet.add_adapter(_lora(config, LORA_TARGETS[config.lora_targets]))
            if config.train_text_encoder:
                text_encoder.add_adapter(_lora(config, TEXT_TARGETS))
        cast_training_params([unet, text_encoder])  # trained weights in float32
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing(partial(checkpoint, **RECOMPUTE))
        if config.train_text_encoder:
            text_encoder.gradient_checkpointing_enable(RECOMPUTE)
    if dtype != torch.float32:
        _keep_half(unet)
    unet.to(memory_format=torch.channels_last)
    return TextAndUNet(unet, text_encoder) if config.train_text_encoder else unet


class _GroupNorm(nn.GroupNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            is_last = inputs.is_cuda and inputs.is_contiguous(memory_format=torch.channels_last)
            if is_last and (channels_last_norm := _channels_last_norm()):
                return channels_last_norm(inputs, self.num_groups, self.weight, self.bias, self.eps)
            return _plain_norm(inputs, self.num_groups, self.weight, self.bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            weight, bias = self.weight.to(inputs.dtype), self.bias.to(inputs.dtype)
            return F.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


@lru_cache(maxsize=1)
def _channels_last_norm() -> Callable[..., Tensor] | None:
    """Group normalisation that leaves channels last, where Triton (a part of PyTorch for CUDA) runs on this GPU."""
    try:
        from helpers.train.group_norm import group_norm

        inputs = torch.randn(1, 32, 4, 4, device="cuda", dtype=torch.float16)
        weight, bias = torch.ones(2, 32, device="cuda")
        found, wanted = (norm(inputs, 8, weight, bias, 1e-5) for norm in (group_norm, _plain_norm))
        if (found - wanted).abs().max() > 0.01:
            raise ValueError("its result is wrong")
    except Exception as error:  # of an old GPU, a missing compiler
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        log.warning("Triton does not run here (%s): norms take somewhat longer", reason)
        return None
    return group_norm


def _plain_norm(inputs: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.group_norm(inputs, groups, weight.to(inputs.dtype), bias.to(inputs.dtype), eps)


def _keep_half(unet: UNet2DConditionModel) -> None:
    """Leave activations in half precision where autocast and peft would widen them, to narrow them right after.

    Norms sum up in float32 inside their kernel all the same, as in a pipeline that draws in half precision.
    """
    for module in unet.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
        elif type(module) is nn.LayerNorm:
            module.__class__ = _LayerNorm
        elif isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _lora(config: TrainConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha or config.rank,
        init_lora_weights="gaussian",
        target_modules=targets,
    )


def settings_of(part: Any) -> dict[str, Any]:
    """A part's config.json, but for what says where it came from and with which libraries."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    written_by = ("transformers_version", "dtype", "torch_dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in written_by}
