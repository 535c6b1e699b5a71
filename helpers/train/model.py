"""Load the components of a base model, and make its denoiser or a LoRA on it trainable."""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPTokenizer

from helpers.config import TrainConfig
from helpers.core.files import read_json, write_json
from helpers.host.device import Device
from helpers.models.capture import CapturedForward
from helpers.models.families import Components, Conditioning, Family, Settings, text_config
from helpers.models.pipeline import clamp_steps, decode_in_tiles, load_model, load_pipeline
from helpers.models.readback import fingerprint, fingerprint_of_files
from helpers.models.untrusted import fit_tokenizer, open_model, refuse_code, settings_in
from helpers.train.check_base import (
    check_latents,
    check_parts,
    check_settings,
    check_tokenizer,
    check_weights,
)
from helpers.train.half_precision import keep_half_precision
from helpers.train.in_backward import weights_dtype

log = logging.getLogger(__name__)

ADVICE = (
    "give a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5, a one-file .safetensors of Stable Diffusion "
    "1, 2 or XL, or a folder in diffusers layout with safetensors weights"
)
VAE_ADVICE = "give a hub id or a folder with an AutoencoderKL's config.json and safetensors weights"
DRAW_PIXELS = 8 * 512**2  # of images drawn together, at most
# random state need not be preserved: there is no dropout
GRADIENT_CHECKPOINTING = {"use_reentrant": False, "preserve_rng_state": False}


@dataclass(frozen=True)
class ModelComponents(Components):
    """A base model's components. The denoiser or its LoRA is trained, the text encoders if asked, the VAE never."""

    device: Device
    hashes: dict[str, str]  # fingerprints of the models by component, as they were loaded
    _encoded: dict[tuple, dict[str, Tensor]] = field(
        default_factory=dict
    )  # prompts, the last drawn

    def fingerprints(self) -> dict[str, str]:
        """Return {component: fingerprint} of all components but the denoiser, which a checkpoint is resumed with."""
        words = [json.dumps(t.get_vocab(), sort_keys=True) for t in self.tokenizers.values()]
        texts = {
            f"{name.replace('_', ' ')} ({encoder.dtype})": self.hashes[name]
            for name, encoder in self.text_encoders.items()
        }
        return {
            f"VAE ({self.vae.dtype})": self.hashes["vae"],
            **texts,
            "tokenizer": hashlib.sha256("".join(words).encode()).hexdigest(),
            "noise schedule": hashlib.sha256(str(self.objective).encode()).hexdigest(),
            "scaling_factor": str(self.vae.config.scaling_factor),
        }

    @property
    def step_px(self) -> int:
        """An image's width and height are multiples of this number of pixels: 64 for SD v1."""
        levels = (len(part.config.block_out_channels) - 1 for part in (self.vae, self.denoiser))
        return 2 ** sum(levels)

    @contextmanager
    def on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Move those of the modules that are frozen to the GPU inside this context, and back to the CPU after."""
        frozen = [m for m in modules if not any(p.requires_grad for p in m.parameters())]
        for module in frozen:
            module.to(self.device.device)
        yield
        for module in frozen:
            module.to("cpu")

    @cached_property
    def _forward(self) -> CapturedForward:
        return CapturedForward(self.denoiser)

    @torch.compiler.set_stance("force_eager")
    @torch.no_grad()
    def draw(
        self,
        config: TrainConfig,
        prompts: list[str],
        generators: list[torch.Generator],
        output_type: str = "pil",
    ) -> Any:
        """Draw an image per prompt with the current weights. Each image has its own random generator.

        Returns PIL images, or latents (N, 4, h, w) for `output_type` "latent".
        """
        # the text encoders leave the GPU before the denoiser draws
        embeddings = self._encode_prompts(tuple(prompts), config.guidance_scale > 1)
        was_training, drawn = self.denoiser.training, []
        self.denoiser.to(self.device.device).eval()
        together = max(1, DRAW_PIXELS // config.resolution_px**2)
        for start in range(0, len(prompts), together):
            part = slice(start, start + together)
            texts = {name: tensor[part] for name, tensor in embeddings.items()}
            drawn.append(self._draw(config, texts, generators[part], output_type))
        self.denoiser.train(was_training)
        return torch.cat(drawn) if output_type == "latent" else list(chain(*drawn))

    def _encode_prompts(self, prompts: tuple[str, ...], guided: bool) -> dict[str, Tensor]:
        """Return what the pipeline takes in place of prompts; frozen encoders' last result is kept."""
        encoders = self.text_encoders.values()
        if found := self._encoded.get((prompts, guided)):
            return found
        with self.on_device(*encoders), self.device.autocast():
            encoded = self._pipeline().encode_prompt(
                list(prompts),
                device=self.device.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
            )
        named = dict(zip(self.family.PROMPT_EMBEDDINGS, encoded, strict=True))
        embeddings = {name: tensor for name, tensor in named.items() if tensor is not None}
        self._encoded.clear()
        if not any(p.requires_grad for encoder in encoders for p in encoder.parameters()):
            self._encoded[prompts, guided] = embeddings
        return embeddings

    def _draw(
        self,
        config: TrainConfig,
        embeddings: dict[str, Tensor],
        generators: list[torch.Generator],
        output_type: str,
    ) -> Any:
        pipeline = self._pipeline(**dict.fromkeys(self.text_encoders))
        captured = self._forward.installed() if self.device.captures else nullcontext()
        with self.on_device(self.vae), captured:
            with self.device.autocast():
                latents = pipeline(
                    **embeddings,
                    height=config.resolution_px,
                    width=config.resolution_px,
                    num_inference_steps=clamp_steps(
                        config.num_inference_steps, self.noise_scheduler
                    ),
                    guidance_scale=config.guidance_scale,
                    generator=generators,
                    output_type="latent",
                ).images
            if output_type == "latent":
                return latents
            # outside autocast, which would run a float32 VAE in fp16
            decode_in_tiles(self.vae, config.resolution_px)
            scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
            pixels = self.vae.decode(scaled).sample
            return pipeline.image_processor.postprocess(pixels, output_type)

    def _pipeline(self, **replaced: Any) -> Any:
        options = self.family.PIPELINE_OPTIONS | self.family.NO_SAFETY_CHECKER
        options |= self.text_settings
        scheduler = self.family.SAMPLER.from_config(self.noise_scheduler.config)
        parts = self.modules | self.tokenizers | {"scheduler": scheduler} | replaced
        pipeline = self.family.PIPELINE(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # one image at a time: four at 512 px would take 2.7 GB
        return pipeline


def load_components(
    base_model: str,
    device: Device,
    train_text_encoder: bool = False,
    unet_dtype: torch.dtype = torch.float32,
    known_hashes: Path | None = None,
    vae: str = "",
) -> ModelComponents:
    """Load a base model, and check everything that training and its export need.

    The denoiser comes in `unet_dtype`, trained text encoders in float32, the others in the device's dtype.
    `known_hashes` is a file that caches fingerprints; `vae` takes the place of the base's own. Raises RunError if a
    model is missing, incomplete, holds anything but safetensors and JSON, or its components do not fit one another.
    """
    text_dtype = torch.float32 if train_text_encoder else device.dtype
    given = _load_vae(vae, read_base(base_model)[0], device) if vae else None
    with open_model("base_model", base_model, ADVICE) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype for torch_dtype
        refuse_code(folder)
        family, settings = check_settings(folder)
        check_weights(folder, settings)
        load = partial(load_model, folder=folder, device=device.device)
        name, kind = family.DENOISER
        denoiser = load(kind, part=name, dtype=unet_dtype)
        vae_dtype = family.vae_dtype(settings["vae"], device.dtype)
        autoencoder = given or load(AutoencoderKL, part="vae", dtype=vae_dtype)
        encoders = {
            part: load(kind, part=part, dtype=text_dtype)
            for part, kind in family.TEXT_ENCODERS.items()
        }
        tokenizers = {
            part: CLIPTokenizer.from_pretrained(folder, subfolder=part)
            for part in family.TOKENIZERS
        }
        for tokenizer, encoder in zip(tokenizers.values(), encoders.values(), strict=True):
            fit_tokenizer(tokenizer, encoder)
            check_tokenizer(tokenizer, encoder)
        models = {name: denoiser, "vae": autoencoder} | encoders
        own = {part: model for part, model in models.items() if model is not given}
        hashes = _hashes(folder, own, known_hashes)
        # as the export will, so that it fails now and not after hours
        load_pipeline(str(folder), device.dtype, **tokenizers, **models)
        noise_scheduler = family.SCHEDULER.from_pretrained(folder, subfolder="scheduler")
    autoencoder.requires_grad_(False).eval()
    for encoder in encoders.values():
        encoder.requires_grad_(False).eval().to(device.device if train_text_encoder else "cpu")
    if device.attention == "xformers":
        denoiser.enable_xformers_memory_efficient_attention()
    return ModelComponents(
        family=family,
        index=settings["model_index"],
        tokenizers=tokenizers,
        text_encoders=encoders,
        vae=autoencoder,
        denoiser=denoiser,
        noise_scheduler=noise_scheduler,
        device=device,
        hashes=hashes | ({"vae": fingerprint(given)} if given else {}),
    )


def _load_vae(vae: str, family: Family, device: Device) -> AutoencoderKL:
    with open_model("vae", vae, VAE_ADVICE) as folder:
        dtype = family.vae_dtype(settings_in(folder / "config.json"), device.dtype)
        return load_model(AutoencoderKL, folder.parent, folder.name, dtype, device.device)


def _hashes(folder: Path, models: dict[str, nn.Module], known: Path | None) -> dict[str, str]:
    """Return each model's fingerprint by name, from the cache file `known` if its weight files are unchanged.

    The denoiser's, which comes first, is of its weights in float32, whatever dtype it was loaded in.
    """
    cached: dict[str, str] = {}
    if known:
        with suppress(OSError, ValueError):
            cached = read_json(known)
    hashes, by_key = {}, {}
    for number, (name, model) in enumerate(models.items()):
        stats = [path.stat() for path in sorted((folder / name).glob("*.safetensors"))]
        times = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]
        dtype = model.dtype if number else torch.float32
        key = hashlib.sha256(repr((name, dtype, times)).encode()).hexdigest()
        if not (found := cached.get(key)):
            is_own = model.dtype == dtype
            found = fingerprint(model) if is_own else fingerprint_of_files(model, folder / name)
        hashes[name] = by_key[key] = found
    if known and by_key != cached:
        write_json(known, cached | by_key)
    return hashes


class Denoiser(nn.Module):
    """A family's denoiser, and the text encoders that are trained with it: what a training step calls."""

    def __init__(
        self,
        family: Family,
        index: dict[str, Any],
        denoiser: nn.Module,
        encoders: dict[str, nn.Module],
    ) -> None:
        """Take the denoiser, and text encoders to encode token ids with; without any, texts come as embeddings."""
        super().__init__()
        self.family, self.index, self.encoders = family, index, tuple(encoders)
        for name, module in {family.DENOISER[0]: denoiser, **encoders}.items():
            self.add_module(name, module)

    @classmethod
    def of(cls, parts: Components, with_text: bool = True) -> "Denoiser":
        """Take the denoiser of a base or a pipeline, and its text encoders unless texts come as embeddings."""
        encoders = parts.text_encoders if with_text else {}
        return cls(parts.family, parts.index, parts.denoiser, encoders)

    @property
    def denoiser(self) -> nn.Module:
        return getattr(self, self.family.DENOISER[0])

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the prediction (B, C, h, w) for noisy latents, timesteps (B,), and embeddings or token ids."""
        if self.encoders:
            encoders = [getattr(self, name) for name in self.encoders]
            ids = {k: v for k, v in conditioning.items() if k.startswith("input_ids")}
            conditioning = conditioning | self.family.encode_text(encoders, ids, self.index)
        return self.family.predict(self.denoiser, noisy, timesteps, conditioning)

    def trained_weights(self) -> dict[str, nn.Parameter]:
        """Return the trained weights by name; the denoiser's name is left out where nothing else is trained."""
        prefix = "" if self.encoders else f"{self.family.DENOISER[0]}."
        weights = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {name.removeprefix(prefix): p for name, p in weights.items()}


def make_trainable(components: Components, config: TrainConfig, dtype: torch.dtype) -> Denoiser:
    """Unfreeze the denoiser (and text encoders if asked), or add LoRA layers (Hu et al. 2021, arXiv:2106.09685).

    Returns the module that is trained. With a LoRA, the base's weights are in `dtype`.
    """
    family, denoiser = components.family, components.denoiser
    encoders = components.text_encoders if config.train_text_encoder else {}
    is_full = config.method == "full"
    denoiser.requires_grad_(is_full)
    for encoder in encoders.values():
        encoder.requires_grad_(is_full).train()
        if is_full:
            nn.Module.to(encoder, denoiser.dtype)
    if not is_full:
        nn.Module.to(denoiser, dtype)  # the model's own to() warns without cause
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser.add_adapter(_lora(config, family.LORA_TARGETS[config.lora_targets]))
            for encoder in encoders.values():
                encoder.add_adapter(_lora(config, family.TEXT_TARGETS))
        cast_training_params([denoiser, *encoders.values()])  # trained weights in float32
    if config.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing(partial(checkpoint, **GRADIENT_CHECKPOINTING))
        for encoder in encoders.values():
            encoder.gradient_checkpointing_enable(GRADIENT_CHECKPOINTING)
    if dtype != torch.float32:
        keep_half_precision(denoiser)
    denoiser.to(memory_format=torch.channels_last)
    return Denoiser.of(components, with_text=config.train_text_encoder)


def unload(components: ModelComponents, config: TrainConfig) -> None:
    """Move the models to the CPU. A LoRA's base is mapped from its files again, so that it takes no main memory."""
    denoiser, device = components.denoiser, torch.device("cpu")
    if config.method == "lora" and denoiser.device != device:
        name, kind = components.family.DENOISER
        with open_model("base_model", config.base_model, ADVICE) as folder:
            mapped = load_model(kind, folder, name, components.device.dtype, device).state_dict()
        for name, weight in denoiser.named_parameters():
            if (plain := name.replace(".base_layer.", ".")) in mapped:
                weight.data = mapped[plain]
    for module in components.modules.values():
        module.to(device)


def _lora(config: TrainConfig, targets: list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha or config.rank,
        init_lora_weights="gaussian",
        target_modules=targets,
    )


def read_base(base_model: str, vae: str = "") -> tuple[Family, Settings]:
    """Return a base model's family and settings, those of `vae` among them, from their JSON files alone.

    Raises RunError if the base cannot be trained, or the VAE does not fit it.
    """
    with open_model("base_model", base_model, ADVICE, weights=False) as folder:
        # the checks compute, also where a model is built on the meta device
        with torch.device("cpu"):
            family, settings = check_settings(folder)
    if vae:
        with open_model("vae", vae, VAE_ADVICE, weights=False) as folder:
            own = settings["vae"]
            settings = {**settings, "vae": settings_in(folder / "config.json")}
            if (kind := settings["vae"].get("_class_name")) != AutoencoderKL.__name__:
                raise ValueError(f"config.json is that of a {kind}")
            check_latents(settings["vae"], own)
            with torch.device("cpu"):
                check_parts(family, settings)
    return family, settings


def build_denoiser(config: TrainConfig, dtype: torch.dtype) -> Denoiser:
    """Build the module that would be trained, with the base model's shapes and random weights."""
    family, settings = read_base(config.base_model, config.vae)
    name, kind = family.DENOISER
    denoiser = kind.from_config(settings[name])
    if config.method == "full":
        nn.Module.to(denoiser, weights_dtype(config))  # the model's own to() warns without cause
    encoders = build_encoders(family, settings) if config.train_text_encoder else {}
    index = settings["model_index"]
    return make_trainable(
        Components(family, index, {}, encoders, None, denoiser, None), config, dtype
    )


def build_encoders(family: Family, settings: Settings) -> dict[str, nn.Module]:
    """Build a base's text encoders with random weights."""
    built = {}
    for part, kind in family.TEXT_ENCODERS.items():
        built[part] = kind(kind.config_class.from_dict(text_config(settings, part)))
    return built


def settings_of(part: Any) -> dict[str, Any]:
    """Return a component's config as a dict, without dtype, library version and keys that start with `_`."""
    config = part.config if isinstance(part.config, dict) else part.config.to_dict()
    written_by = ("transformers_version", "dtype", "torch_dtype")
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in written_by}
