"""Latents and text embeddings, computed once and kept under a hash of all they depend on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
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
from helpers.models.readback import as_bytes
from helpers.train.buckets import Framing
from helpers.train.model import Parts, settings_of
from helpers.train.order import generator

AT_ONCE = 4  # pictures that are encoded together


@dataclass(frozen=True)
class Examples:
    """What is trained on.

    latents  of each image (4, h, w), or (V, 4, h, w) where V variants of it are cached; scaled by the
             autoencoder's scaling_factor; a bucket's images share h and w
    texts    (N, T, D), the text encoder's last hidden state; (N, T) token ids where that encoder is trained
    names    of each image, for messages
    """

    latents: Sequence[Tensor]
    texts: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.latents)

    def __add__(self, other: "Examples") -> "Examples":
        return Examples(
            [*self.latents, *other.latents],
            torch.cat([self.texts, other.texts]),
            self.names + other.names,
        )

    def shape(self, index: int) -> torch.Size:
        """(4, h, w) of an image."""
        return self.latents[index].shape[-3:]

    def variants(self, index: int) -> Tensor:
        """An image's latents as (V, 4, h, w)."""
        return self.latents[index].reshape(-1, *self.shape(index))

    def buckets(self) -> list[list[int]]:
        """The images' indices, those of one shape together."""
        together: dict[torch.Size, list[int]] = {}
        for index in range(len(self)):
            together.setdefault(self.shape(index), []).append(index)
        return list(together.values())


def _kept(
    run: Run, name: str, key: object, compute: Callable[[], Iterable[Tensor]]
) -> list[Tensor]:
    """Tensors from this run's cache, or another run's, or computed and put there."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = run.cache / f"{name}-{digest}.safetensors"
    others = run.folder.parent.glob(f"*/{run.cache.name}/{path.name}")
    for found in [path, *others]:
        if tensors := _read(found):
            return tensors
    computed = [tensor.clone() for tensor in compute()]
    with replacing_file(path) as beside:
        named = {f"{i:08d}": tensor for i, tensor in enumerate(computed)}
        save_file(named, beside, {"sha256": _digest(computed)})
    return computed


def _read(path: Path) -> list[Tensor]:
    """The tensors of a cache file, or none if it is not there, damaged, or has NaN: a cache may be lost at any time."""
    try:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in sorted(file.keys())]
            kept = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return []
    if kept != _digest(tensors) or not all(tensor.isfinite().all() for tensor in tensors):
        return []
    return tensors


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def image_examples(
    run: Run, parts: Parts, config: TrainConfig, split: str, rows: Sequence[tuple[str, str]]
) -> Examples:
    """Encode the images and texts of a split, given as (file_name, text)."""
    names, texts = zip(*rows, strict=True)
    paths = [run.split(split) / name for name in names]
    framing = Framing.of(config, parts.step_px, augmented=split == "train")
    encoder = [parts.hashes["vae"], settings_of(parts.vae)]
    key = [asdict(framing), *encoder, [sha256(path) for path in paths]]
    latents = _kept(run, f"{split}-images", key, lambda: encode_images(parts, paths, framing))
    return Examples(latents, text_examples(run, parts, config, split, texts), names)


def text_examples(
    run: Run, parts: Parts, config: TrainConfig, name: str, texts: Sequence[str]
) -> Tensor:
    """Texts as their embeddings, or as token ids where the text encoder is to be trained."""
    ids = token_ids(parts, texts)
    if config.train_text_encoder:
        return ids
    key = [parts.hashes["text_encoder"], settings_of(parts.text_encoder), ids.tolist()]
    return torch.stack(_kept(run, f"{name}-texts", key, lambda: encode_texts(parts, texts)))


def prior_examples(
    run: Run, parts: Parts, config: TrainConfig, captions: Sequence[str]
) -> Examples:
    """The base model's own samples of captions without the suffix, to be kept in the training mix.

    Prior preservation (Ruiz et al. 2023, arXiv:2208.12242): what is not said to be in the style stays as it
    was, so the suffix becomes a switch.
    """
    key = [
        config.resolution_px,
        *(parts.hashes[name] for name in ("unet", "text_encoder")),
        *(settings_of(part) for part in (parts.unet, parts.text_encoder, parts.noise_scheduler)),
        parts.device.precision,
        token_ids(parts, [*captions, ""]).tolist(),
        config.num_inference_steps,
        config.guidance_scale,
        config.seed,
    ]
    latents = _kept(run, "prior-images", key, lambda: _sample_latents(parts, config, captions))
    names = tuple(f"the base's sample of {caption!r}" for caption in captions)
    return Examples(latents, text_examples(run, parts, config, "prior", captions), names)


@torch.no_grad()
def encode_images(parts: Parts, paths: Sequence[Path], framing: Framing) -> list[Tensor]:
    """Image files to scaled latents, each (V, 4, height / f, width / f), float32 on the CPU."""
    together = AT_ONCE if parts.device.device.type == "cuda" else 1  # a CPU gains nothing
    latents: list[Tensor] = []
    with (
        parts.awake(),
        ThreadPoolExecutor(2) as pool,
        tqdm(total=len(paths), desc="encode images", leave=False) as bar,
    ):
        for start in range(0, len(paths), together):
            pixels = list(pool.map(framing.variants, paths[start : start + together]))
            latents += _encode(parts, pixels)
            bar.update(len(pixels))
    for path, of_image in zip(paths, latents, strict=True):
        if not of_image.isfinite().all():
            raise RunError(
                f"{path} has latents with NaN or inf: set mixed_precision to 'no', or take the picture out with "
                "helpers.dataset.takedown"
            )
    return latents


def _encode(parts: Parts, pixels: Sequence[Tensor]) -> list[Tensor]:
    """Images' variants, each (V, 3, height, width), to scaled latents; those of one shape go together."""
    latents: dict[int, Tensor] = {}
    for shape in {images.shape for images in pixels}:
        same = [i for i, images in enumerate(pixels) if images.shape == shape]
        batch = torch.cat([pixels[i] for i in same]).to(parts.vae.device, parts.vae.dtype)
        means = [parts.vae.encode(some).latent_dist.mean for some in batch.split(AT_ONCE)]
        scaled = torch.cat(means).float().cpu() * parts.vae.config.scaling_factor
        latents |= dict(zip(same, scaled.split(shape[0]), strict=True))
    return [latents[i].clone() for i in range(len(pixels))]


def token_ids(parts: Parts, texts: Sequence[str]) -> Tensor:
    """Texts to token ids (N, T), padded and cut to the text encoder's length."""
    return parts.tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encode_texts(parts: Parts, texts: Sequence[str], batch: int = 32) -> Tensor:
    """Texts to the text encoder's last hidden state (N, T, D), float32 on the CPU."""
    encoder = parts.text_encoder
    with parts.awake():
        encoded = [
            encoder(part.to(encoder.device)).last_hidden_state.float().cpu()
            for part in token_ids(parts, texts).split(batch)
        ]
    embeddings = torch.cat(encoded)
    for text, embedding in zip(texts, embeddings, strict=True):
        if not embedding.isfinite().all():
            raise RunError(f"the text encoder gives NaN for {text!r}: set mixed_precision to 'no'")
    return embeddings


def _sample_latents(
    parts: Parts, config: TrainConfig, captions: Sequence[str], batch: int = 8
) -> Tensor:
    latents = []
    starts = range(0, len(captions), batch)
    for start in tqdm(starts, "draw the base model's own style", leave=False):
        some = list(captions[start : start + batch])
        generators = [generator(config.seed, "prior", start + i) for i in range(len(some))]
        latents.append(parts.draw(config, some, generators, "latent").float().cpu())
        for caption, latent in zip(some, latents[-1], strict=True):
            if not latent.isfinite().all():
                raise RunError(
                    f"the base's sample of {caption!r} has NaN in its latents: set mixed_precision to 'no', "
                    "or prior_share to 0"
                )
    return torch.cat(latents)
