"""Compute latents and text embeddings once, and cache the results under a hash of all inputs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPTokenizer

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import replacing_file, sha256
from helpers.core.run import Run
from helpers.models.readback import as_bytes
from helpers.train.buckets import Crop
from helpers.train.data import LatentDataset, generator
from helpers.train.model import ModelComponents, settings_of

ENCODE_BATCH = 4  # images


def cached(
    run: Run, name: str, key: object, compute: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """Return the tensors cached under `key` in any run, or else compute them and cache them in this run."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{digest}.safetensors"
    others = run.folder.parent.glob(f"*/{run.cache.name}/{path.name}")
    for file in [path, *others]:
        if tensors := _read_cache(file):
            return tensors
    computed = [tensor.clone() for tensor in compute()]
    with replacing_file(path) as tmp_path:
        named = {f"{i:08d}": tensor for i, tensor in enumerate(computed)}
        save_file(named, tmp_path, {"sha256": _digest(computed)})
    return computed


def _read_cache(path: Path) -> list[Tensor]:
    """Read the tensors of a cache file, or [] if the file is missing, damaged or holds NaN or inf."""
    try:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return []
    if digest != _digest(tensors) or not all(tensor.isfinite().all() for tensor in tensors):
        return []
    return tensors


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def image_dataset(
    run: Run,
    components: ModelComponents,
    config: TrainConfig,
    split: str,
    rows: Sequence[tuple[str, str]],
) -> LatentDataset:
    """Return a split's images as latents and its captions as embeddings; `rows` are (file_name, caption) pairs."""
    names, texts = zip(*rows, strict=True)
    paths = [run.split(split) / name for name in names]
    crop = Crop.from_config(config, components.step_px, augmented=split == "train")
    encoder = [components.hashes["vae"], settings_of(components.vae)]
    # a cache of an older version is found again as long as this key stays as it is
    key = [asdict(crop), *encoder, [sha256(path) for path in paths]]
    latents = cached(run, f"{split}-images", key, lambda: encode_images(components, paths, crop))
    return LatentDataset(latents, text_embeddings(run, components, config, split, texts), names)


def text_embeddings(
    run: Run, components: ModelComponents, config: TrainConfig, name: str, texts: Sequence[str]
) -> Tensor:
    """Return captions as text embeddings, or as token ids if the text encoder is trained."""
    ids = token_ids(components.tokenizer, texts)
    if config.train_text_encoder:
        return ids
    key = [components.hashes["text_encoder"], settings_of(components.text_encoder), ids.tolist()]
    return torch.stack(cached(run, f"{name}-texts", key, lambda: encode_texts(components, texts)))


def prior_dataset(
    run: Run, components: ModelComponents, config: TrainConfig, captions: Sequence[str]
) -> LatentDataset:
    """Sample images from the base model for captions without the suffix; return their latents and embeddings.

    Prior preservation (Ruiz et al. 2023, arXiv:2208.12242) mixes them into the training images: without the suffix the
    model keeps drawing as the base does, so the suffix becomes a switch.
    """
    parts = (components.unet, components.text_encoder, components.noise_scheduler)
    key = [
        config.resolution_px,
        *(components.hashes[name] for name in ("unet", "text_encoder")),
        *map(settings_of, parts),
        components.device.precision,
        token_ids(components.tokenizer, [*captions, ""]).tolist(),
        config.num_inference_steps,
        config.guidance_scale,
        config.seed,
    ]
    latents = cached(
        run, "prior-images", key, lambda: _sample_latents(components, config, captions)
    )
    names = tuple(f"the base's sample of {caption!r}" for caption in captions)
    return LatentDataset(
        latents, text_embeddings(run, components, config, "prior", captions), names
    )


@torch.no_grad()
def encode_images(components: ModelComponents, paths: Sequence[Path], crop: Crop) -> list[Tensor]:
    """Encode the V crops and mirror images of each image file to scaled latents (V, 4, h, w).

    The latents are float32 on the CPU; h and w are a crop's height and width divided by 8 for SD v1. Raises RunError
    for a file that does not decode, or whose latents hold NaN or inf.
    """
    batch = ENCODE_BATCH if components.device.device.type == "cuda" else 1  # a CPU gains nothing
    latents: list[Tensor] = []
    with (
        components.on_device(),
        ThreadPoolExecutor(2) as pool,
        tqdm(total=len(paths), desc="encode images", leave=False) as bar,
    ):
        for start in range(0, len(paths), batch):
            pixels = list(pool.map(crop.augmentations, paths[start : start + batch]))
            latents += _encode(components, pixels)
            bar.update(len(pixels))
    names = [f"the latents of {path}" for path in paths]
    _require_finite(latents, names, ", or remove the picture with helpers.dataset.takedown")
    return latents


def _require_finite(tensors: Iterable[Tensor], names: Iterable[str], advice: str = "") -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.isfinite().all():
            raise RunError(f"NaN or inf in {name}: set mixed_precision to 'no'{advice}")


def _encode(components: ModelComponents, pixels: Sequence[Tensor]) -> list[Tensor]:
    """Encode each image's (V, 3, height, width) crops and mirror images to scaled latents, batched by shape."""
    latents: dict[int, Tensor] = {}
    for shape in {images.shape for images in pixels}:
        same = [i for i, images in enumerate(pixels) if images.shape == shape]
        batch = torch.cat([pixels[i] for i in same]).to(components.vae.device, components.vae.dtype)
        means = [components.vae.encode(part).latent_dist.mean for part in batch.split(ENCODE_BATCH)]
        scaled = torch.cat(means).float().cpu() * components.vae.config.scaling_factor
        latents |= dict(zip(same, scaled.split(shape[0]), strict=True))
    return [latents[i].clone() for i in range(len(pixels))]


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Return captions as token ids (N, T), padded and truncated to the text encoder's length."""
    return tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_texts(components: ModelComponents, texts: Sequence[str], batch: int = 32) -> Tensor:
    """Return captions as the text encoder's last hidden state (N, T, D), float32 on the CPU."""
    encoder = components.text_encoder
    with components.on_device():
        encoded = [
            encoder(part.to(encoder.device)).last_hidden_state.float().cpu()
            for part in token_ids(components.tokenizer, texts).split(batch)
        ]
    embeddings = torch.cat(encoded)
    _require_finite(embeddings, [f"the embedding of {text!r}" for text in texts])
    return embeddings


def _sample_latents(
    components: ModelComponents, config: TrainConfig, captions: Sequence[str], batch: int = 8
) -> Tensor:
    latents = []
    starts = range(0, len(captions), batch)
    for start in tqdm(starts, "draw the base model's own style", leave=False):
        part = list(captions[start : start + batch])
        generators = [generator(config.seed, "prior", start + i) for i in range(len(part))]
        latents.append(components.draw(config, part, generators, "latent").float().cpu())
        names = [f"the base's sample of {caption!r}" for caption in part]
        _require_finite(latents[-1], names, ", or prior_share to 0")
    return torch.cat(latents)
