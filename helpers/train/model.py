"""A Stable Diffusion v1 model in its parts, and what it takes to train it here."""

import hashlib
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel, CLIPTokenizer

from helpers.config import TrainConfig
from helpers.device import Device
from helpers.errors import RunError

LARGE = 100e6  # parameters; a UNet beyond this wants a GPU
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]


@dataclass(frozen=True)
class Parts:
    """The parts of a base model. Only the UNet, or its LoRA, is trained; the rest is frozen."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    device: Device

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
        with self.device.autocast():
            images = self._pipeline()(
                prompts,
                height=config.resolution_px,
                width=config.resolution_px,
                num_inference_steps=config.num_inference_steps,
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
        return pipeline


def load_parts(base_model: str, device: Device) -> Parts:
    """Load a base model from a hub id or a folder; trained weights in float32, frozen ones in the device's dtype.

    Raises RunError if it is not there or not in diffusers layout.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # newer diffusers say dtype for torch_dtype
            vae = AutoencoderKL.from_pretrained(
                base_model, subfolder="vae", torch_dtype=torch.float32
            )
            unet = UNet2DConditionModel.from_pretrained(
                base_model, subfolder="unet", torch_dtype=torch.float32
            )
        text_encoder = CLIPTextModel.from_pretrained(
            base_model, subfolder="text_encoder", torch_dtype=torch.float32
        )
        tokenizer = CLIPTokenizer.from_pretrained(base_model, subfolder="tokenizer")
        noise_scheduler = DDPMScheduler.from_pretrained(base_model, subfolder="scheduler")
    except (OSError, ValueError) as error:
        raise _no_such_base(base_model, error) from error
    for frozen in (vae, text_encoder):
        frozen.requires_grad_(False).eval().to(device.device, device.dtype)
    if device.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    return Parts(tokenizer, text_encoder, vae, unet.to(device.device), noise_scheduler, device)


def _no_such_base(base_model: str, error: Exception) -> RunError:
    return RunError(
        f"base_model {base_model!r} could not be loaded ({str(error).splitlines()[0]}): "
        "give a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5, or a folder in diffusers layout"
    )


def make_trainable(unet: UNet2DConditionModel, config: TrainConfig) -> dict[str, nn.Parameter]:
    """Unfreeze the UNet, or add a LoRA to it (Hu et al. 2021, arXiv:2106.09685); return what is trained, by name."""
    unet.requires_grad_(config.method == "full")
    if config.method == "lora":
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.rank,
            init_lora_weights="gaussian",
            target_modules=LORA_TARGETS,
        )
        unet.add_adapter(lora)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.to(memory_format=torch.channels_last)
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all of a module's weights, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B")


def refuse_slow(config: TrainConfig, device: Device) -> None:
    """Stop before a full-size model is trained without a GPU, saying what it would cost.

    Counts the floating-point operations of a step on a UNet without memory, and times this machine.
    Raises RunError unless config.allow_slow.
    """
    if device.device.type != "cpu" or config.allow_slow:
        return
    try:
        unet_config = UNet2DConditionModel.load_config(config.base_model, subfolder="unet")
    except (OSError, ValueError) as error:
        raise _no_such_base(config.base_model, error) from error
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
    parameters = sum(p.numel() for p in unet.parameters())
    if parameters < LARGE:
        return
    images = config.train_batch_size * config.gradient_accumulation_steps
    seconds = 3 * images * _forward_flops(unet, config.resolution_px // 8) / _flops_per_s()
    raise RunError(
        f"{config.base_model} has {parameters / 1e6:.0f} M parameters and there is no GPU here: "
        f"{config.max_steps} steps of about {seconds:.0f} s would take {config.max_steps * seconds / 3600:.0f} hours "
        f"and {parameters * 16 / 1e9:.0f} GB of memory; choose a GPU runtime, or set more={{'allow_slow': True}}"
    )


def _forward_flops(unet: UNet2DConditionModel, latent_side: int) -> float:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        latents = torch.empty(1, unet.config.in_channels, latent_side, latent_side)
        unet(latents, torch.zeros(1), torch.empty(1, 77, unet.config.cross_attention_dim))
    return counter.get_total_flops()


def _flops_per_s(side: int = 1024) -> float:
    """What a matrix product reaches on this CPU; a UNet comes to about half of it."""
    a = torch.randn(side, side)
    a @ a
    began = time.perf_counter()
    for _ in range(3):
        a @ a
    return 0.5 * 3 * 2 * side**3 / (time.perf_counter() - began)
