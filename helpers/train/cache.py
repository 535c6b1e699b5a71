"""Latents and text embeddings, computed once and kept under a hash of all they depend on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from helpers.config import TrainConfig
from helpers.errors import RunError
from helpers.pictures import middle_square, open_rgb
from helpers.run import Run
from helpers.store import replacing_file, sha256
from helpers.train.model import Parts, fingerprint
from helpers.train.order import generator


@dataclass(frozen=True)
class Examples:
    """What the UNet trains on.

    latents  (N, 4, h, w), scaled by the autoencoder's scaling_factor
    texts    (N, T, D), the text encoder's last hidden state
    """

    latents: Tensor
    texts: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def __add__(self, other: "Examples") -> "Examples":
        return Examples(
            torch.cat([self.latents, other.latents]), torch.cat([self.texts, other.texts])
        )


def _kept(run: Run, name: str, key: object, compute: Callable[[], Examples]) -> Examples:
    """Examples from the cache, or computed and put there."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{digest}.safetensors"
    if path.is_file():
        return Examples(**load_file(path))
    examples = compute()
    with replacing_file(path) as beside:
        save_file({"latents": examples.latents, "texts": examples.texts}, beside)
    return examples


def image_examples(
    run: Run, parts: Parts, config: TrainConfig, split: str, rows: Sequence[tuple[str, str]]
) -> Examples:
    """Encode the images and texts of a split, given as (file_name, text)."""
    paths = [run.split(split) / file_name for file_name, _ in rows]
    texts = [text for _, text in rows]
    key = [
        config.resolution_px,
        fingerprint(parts.vae),
        fingerprint(parts.text_encoder),
        [sha256(path) for path in paths],
        texts,
    ]
    return _kept(
        run,
        split,
        key,
        lambda: Examples(
            encode_images(parts, paths, config.resolution_px), encode_texts(parts, texts)
        ),
    )


def prior_examples(
    run: Run, parts: Parts, config: TrainConfig, captions: Sequence[str]
) -> Examples:
    """The base model's own samples of captions without the suffix, to be kept in the training mix.

    Prior preservation (Ruiz et al. 2023, arXiv:2208.12242): what is not said to be in the style stays as it
    was, so the suffix becomes a switch.
    """
    key = [
        config.resolution_px,
        fingerprint(parts.unet),
        fingerprint(parts.text_encoder),
        list(captions),
        config.num_inference_steps,
        config.guidance_scale,
        config.seed,
    ]
    return _kept(
        run,
        "prior",
        key,
        lambda: Examples(_sample_latents(parts, config, captions), encode_texts(parts, captions)),
    )


@torch.no_grad()
def encode_images(parts: Parts, paths: Sequence[Path], side_px: int, batch: int = 8) -> Tensor:
    """Image files to scaled latents (N, 4, side_px / f, side_px / f), float32 on the CPU."""
    latents = []
    for start in tqdm(range(0, len(paths), batch), "encode images", leave=False):
        pixels = torch.stack([_pixels(path, side_px) for path in paths[start : start + batch]])
        pixels = pixels.to(parts.vae.device, parts.vae.dtype)
        latents.append(parts.vae.encode(pixels).latent_dist.mean.float().cpu())
    return torch.cat(latents) * parts.vae.config.scaling_factor


def _pixels(path: Path, side_px: int) -> Tensor:
    """An image file, its middle square scaled to side_px, as (3, side_px, side_px) in -1..1."""
    try:
        image = middle_square(open_rgb(path))
    except OSError as error:
        raise RunError(f"{path} does not decode ({error}): run 03_dataset again") from error
    image = image.resize((side_px, side_px), Image.Resampling.LANCZOS)
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(side_px, side_px, 3).permute(2, 0, 1).float() / 127.5 - 1


@torch.no_grad()
def encode_texts(parts: Parts, texts: Sequence[str], batch: int = 32) -> Tensor:
    """Texts to the text encoder's last hidden state (N, T, D), float32 on the CPU."""
    ids = parts.tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    encoded = [
        parts.text_encoder(part.to(parts.text_encoder.device)).last_hidden_state.float().cpu()
        for part in ids.split(batch)
    ]
    return torch.cat(encoded)


def _sample_latents(
    parts: Parts, config: TrainConfig, captions: Sequence[str], batch: int = 8
) -> Tensor:
    latents = []
    starts = range(0, len(captions), batch)
    for start in tqdm(starts, "draw the base model's own style", leave=False):
        some = list(captions[start : start + batch])
        generators = [generator(config.seed, "prior", start + i) for i in range(len(some))]
        latents.append(parts.draw(config, some, generators, "latent").float().cpu())
    return torch.cat(latents)
