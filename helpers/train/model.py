"""Load the components of a Stable Diffusion model, and make the UNet or a LoRA on it trainable."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
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
from torch import Tensor, nn
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
from helpers.train.half_precision import keep_half_precision

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
# random state need not be preserved: there is no dropout
GRADIENT_CHECKPOINTING = {"use_reentrant": False, "preserve_rng_state": False}
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]  # as in diffusers' LoRA training scripts
NO_SAFETY_CHECKER = {  # loading one would take another gigabyte
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}


@dataclass(frozen=True)
class ModelComponents:
    """The components of a base model. The UNet or its LoRA is trained, the text encoder if asked, the VAE never."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    device: Device
    hashes: dict[str, str]  # fingerprints of unet, vae and text_encoder, as they were loaded

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints that a checkpoint needs to resume: of all components but the UNet, by name."""
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
        """The number of pixels that must divide an image's width and height: 64 for SD v1."""
        levels = (len(part.config.block_out_channels) - 1 for part in (self.vae, self.unet))
        return 2 ** sum(levels)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Move the VAE, and the text encoder if frozen, to the GPU inside this context and back to the CPU after."""
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
        """Sample an image per prompt with the current weights, each from its own generator.

        Returns PIL images, or latents (N, 4, h, w) for `output_type` "latent".
        """
        was_training = self.unet.training
        self.unet.eval()
        captured = self._forward.installed() if self.device.captures else nullcontext()
        with self.on_device(), self.device.autocast(), captured:
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
        parts = {n: getattr(self, n) for n in ("vae", "text_encoder", "tokenizer", "unet")}
        scheduler = DPMSolverMultistepScheduler.from_config(self.noise_scheduler.config)
        pipeline = StableDiffusionPipeline(**parts, scheduler=scheduler, **NO_SAFETY_CHECKER)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # one image at a time: four at 512 px would take 2.7 GB
        return pipeline


def load_components(
    base_model: str,
    device: Device,
    train_text_encoder: bool = False,
    unet_dtype: torch.dtype = torch.float32,
    known_hashes: Path | None = None,
) -> ModelComponents:
    """Load a base model, and check everything that training and its export need.

    The UNet comes in `unet_dtype`, a trained text encoder in float32, the others in the device's dtype.
    `known_hashes` is a file that caches fingerprints. Raises RunError if the model is missing, incomplete, holds
    anything but safetensors and JSON, or its components do not fit one another.
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
        models = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
        hashes = _hashes(folder, models, known_hashes)
        # as the export will, so that it fails now and not after hours
        load_pipeline(str(folder), device.dtype, tokenizer=tokenizer, **models)
    vae.requires_grad_(False).eval()
    text_encoder.requires_grad_(False).eval().to(device.device if train_text_encoder else "cpu")
    if device.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    # before the GPU has it; the model's own to() warns without cause
    nn.Module.to(unet, unet_dtype)
    unet.to(device.device)
    return ModelComponents(tokenizer, text_encoder, vae, unet, noise_scheduler, device, hashes)


def _hashes(folder: Path, models: dict[str, nn.Module], known: Path | None) -> dict[str, str]:
    """Return each model's fingerprint by name, from the cache file `known` if its weight files are unchanged."""
    cached: dict[str, str] = {}
    if known:
        with suppress(OSError, ValueError):
            cached = read_json(known)
    hashes, by_key = {}, {}
    for name, model in models.items():
        stats = [path.stat() for path in sorted((folder / name).glob("*.safetensors"))]
        times = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        key = hashlib.sha256(repr((name, model.dtype, times)).encode()).hexdigest()
        hashes[name] = by_key[key] = cached.get(key) or fingerprint(model)
    if known and by_key != cached:
        write_json(known, cached | by_key)
    return hashes


class TextAndUNet(nn.Module):
    """A text encoder and a UNet that are trained together, called like a UNet but with token ids."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, latents: Tensor, timesteps: Tensor, ids: Tensor) -> Any:
        """Return the UNet's output for noisy latents (B, 4, h, w), timesteps (B,) and token ids (B, T)."""
        return self.unet(latents, timesteps, self.text_encoder(ids).last_hidden_state)


def make_trainable(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, config: TrainConfig, dtype: torch.dtype
) -> nn.Module:
    """Unfreeze the UNet (and the text encoder if asked), or add LoRA layers (Hu et al. 2021, arXiv:2106.09685).

    Returns the module that is trained. With a LoRA, the base's weights are in `dtype`.
    """
    unet.requires_grad_(config.method == "full")
    if config.train_text_encoder:
        text_encoder.requires_grad_(config.method == "full").train()
        if config.method == "full":
            nn.Module.to(text_encoder, unet.dtype)
    if config.method == "lora":
        nn.Module.to(unet, dtype)  # the model's own to() warns without cause
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            unet.add_adapter(_lora(config, LORA_TARGETS[config.lora_targets]))
            if config.train_text_encoder:
                text_encoder.add_adapter(_lora(config, TEXT_TARGETS))
        cast_training_params([unet, text_encoder])  # trained weights in float32
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing(partial(checkpoint, **GRADIENT_CHECKPOINTING))
        if config.train_text_encoder:
            text_encoder.gradient_checkpointing_enable(GRADIENT_CHECKPOINTING)
    if dtype != torch.float32:
        keep_half_precision(unet)
    unet.to(memory_format=torch.channels_last)
    return TextAndUNet(unet, text_encoder) if config.train_text_encoder else unet


def _lora(config: TrainConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha or config.rank,
        init_lora_weights="gaussian",
        target_modules=targets,
    )


def settings_of(part: Any) -> dict[str, Any]:
    """Return a component's config as a dict, without dtype, library version and keys that start with `_`."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    written_by = ("transformers_version", "dtype", "torch_dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in written_by}
