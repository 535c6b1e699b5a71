"""Compute latents and text embeddings once, and cache the results under a hash of all inputs."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.core.files import replacing_file, sha256
from helpers.core.run import Run
from helpers.models.families import Components, Conditioning, Family
from helpers.models.readback import as_bytes
from helpers.train.buckets import Crop
from helpers.train.data import LatentDataset, generator
from helpers.train.model import ModelComponents, settings_of

ENCODE_BATCH = 4  # images
# of a batch at most; the VAE takes 2.7 GB for an image of 1024 px in float32
ENCODE_PIXELS = 4 * 512**2


def cached(
    run: Run, name: str, key: object, compute: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """Return tensors from the cache of any run. If no run has them, compute them and cache them in this run."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{digest}.safetensors"
    others = run.folder.parent.glob(f"*/{run.cache.name}/{path.name}")
    for file in [path, *others]:
        if tensors := _read_cache(file):
            return tensors
    # an encoder may leave channels last, which no file holds
    computed = [tensor.clone(memory_format=torch.contiguous_format) for tensor in compute()]
    with replacing_file(path) as tmp_path:
        named = {f"{i:08d}": tensor for i, tensor in enumerate(computed)}
        save_file(named, tmp_path, {"sha256": _digest(computed)})
    return computed


def _read_cache(path: Path) -> list[Tensor]:
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
    embeddings = text_embeddings(run, components, config, split, texts)
    return LatentDataset(latents, embeddings, names, _sizes(components.family, crop, paths))


def _sizes(family: Family, crop: Crop, paths: Sequence[Path]) -> dict[str, list[Tensor]]:
    """Return the size conditioning of each image's augmentations (V, ...) by name; {} if the family has none."""
    if not family.size_conditioning((1, 1), (0, 0), (1, 1)):
        return {}
    sizes: dict[str, list[Tensor]] = {}
    for path in paths:
        found = [family.size_conditioning(*places) for places in crop.places(path)]
        for name in found[0]:
            sizes.setdefault(name, []).append(torch.cat([one[name] for one in found]))
    return sizes


def text_embeddings(
    run: Run, components: ModelComponents, config: TrainConfig, name: str, texts: Sequence[str]
) -> Conditioning:
    """Return captions as text embeddings, or as token ids if the text encoders are trained."""
    ids = token_ids(components, texts)
    if config.train_text_encoder:
        return ids
    encoders = components.text_encoders
    parts = [[components.hashes[n], settings_of(encoder)] for n, encoder in encoders.items()]
    settings = components.text_settings.values()
    key = [*chain(*parts), *(tokens.tolist() for tokens in ids.values()), *settings]
    computed = cached(
        run, f"{name}-texts", key, lambda: chain(*encode_texts(components, texts).values())
    )
    starts = range(0, len(computed), len(texts))
    stacked = [torch.stack(computed[start : start + len(texts)]) for start in starts]
    return dict(zip(components.family.TEXT_EMBEDDINGS, stacked, strict=True))


def prior_dataset(
    run: Run, components: ModelComponents, config: TrainConfig, captions: Sequence[str]
) -> LatentDataset:
    """Return the latents and text embeddings of images that the base model draws from captions without the suffix.

    Prior preservation (Ruiz et al. 2023, arXiv:2208.12242) mixes them into the training images: without the suffix the
    model keeps drawing as the base does, so the suffix becomes a switch.
    """
    drawn_with = {name: m for name, m in components.modules.items() if name != "vae"}
    ids = token_ids(components, [*captions, ""])
    key = [
        config.resolution_px,
        *(components.hashes[name] for name in drawn_with),
        *map(settings_of, (*drawn_with.values(), components.noise_scheduler)),
        components.device.precision,
        *(tokens.tolist() for tokens in ids.values()),
        config.num_inference_steps,
        config.guidance_scale,
        config.seed,
        *(name for name, value in components.text_settings.items() if not value),
    ]
    latents = cached(
        run, "prior-images", key, lambda: _sample_latents(components, config, captions)
    )
    names = tuple(f"the base's sample of {caption!r}" for caption in captions)
    embeddings = text_embeddings(run, components, config, "prior", captions)
    whole = (config.resolution_px, config.resolution_px)
    sizes = components.family.size_conditioning(whole, (0, 0), whole)
    of_each = {name: [size] * len(captions) for name, size in sizes.items()}
    return LatentDataset(latents, embeddings, names, of_each)


@torch.no_grad()
def encode_images(components: ModelComponents, paths: Sequence[Path], crop: Crop) -> list[Tensor]:
    """Encode each image file's V crops, mirrored ones included, to scaled latents (V, 4, h, w).

    The latents are float32 on the CPU; h and w are a crop's height and width divided by 8 for SD v1. Raises RunError
    for a file that does not decode, or whose latents hold NaN or inf.
    """
    batch = ENCODE_BATCH if components.device.device.type == "cuda" else 1  # a CPU gains nothing
    latents: list[Tensor] = []
    with (
        components.on_device(components.vae),
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
    # an image is its crops, mirrored ones included: (V, 3, height, width)
    latents: dict[int, Tensor] = {}
    for shape in {images.shape for images in pixels}:
        same = [i for i, images in enumerate(pixels) if images.shape == shape]
        batch = torch.cat([pixels[i] for i in same]).to(components.vae.device, components.vae.dtype)
        together = max(1, min(ENCODE_BATCH, ENCODE_PIXELS // (shape[-1] * shape[-2])))
        parts = batch.split(together)
        encoded = [components.family.encode_image(components.vae, part).cpu() for part in parts]
        latents |= dict(zip(same, torch.cat(encoded).split(shape[0]), strict=True))
    return [latents[i].clone() for i in range(len(pixels))]


def token_ids(components: Components, texts: Sequence[str]) -> Conditioning:
    """Return captions as token ids (N, T) of each tokenizer, padded and truncated to the text encoder's length."""
    return components.family.tokenize(list(components.tokenizers.values()), texts)


@torch.no_grad()
def encode_texts(
    components: ModelComponents, texts: Sequence[str], batch: int = 32
) -> Conditioning:
    """Return captions as text embeddings (N, ...), float32 on the CPU."""
    encoders, encoded = list(components.text_encoders.values()), []
    ids = token_ids(components, texts)
    with components.on_device(*encoders):
        for start in range(0, len(texts), batch):
            part = {
                name: t[start : start + batch].to(encoders[0].device) for name, t in ids.items()
            }
            found = components.family.encode_text(encoders, part, components.index)
            encoded.append({name: tensor.float().cpu() for name, tensor in found.items()})
    embeddings = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
    for tensors in embeddings.values():
        _require_finite(tensors, [f"the embedding of {text!r}" for text in texts])
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
