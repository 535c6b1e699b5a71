"""Models that others made: read as safetensors and JSON alone, so that nothing in them can run.

A pickle runs what its maker wrote into it when it is loaded, and so does a module that lies beside the weights
where a loader looks for one. Neither is ever opened, whatever the versions of the libraries allow. A loader is
given a folder in diffusers layout, never a hub id or a one-file checkpoint: `model_folder` makes one of whatever a
user gave, and it is looked at as any folder is.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file as read_tensors
from torch import Tensor

from helpers.core.errors import RunError
from helpers.core.files import read_json
from helpers.models.hub_model import fetch, successor, without_variants
from helpers.models.single_file import convert, find_single_file

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
PIPELINES = {"StableDiffusionPipeline"}
PARTS = {  # that Stable Diffusion's pipelines are made of, and whose they are
    "AutoencoderKL": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTokenizer": "transformers",
    "CLIPTokenizerFast": "transformers",
    "CLIPImageProcessor": "transformers",
    "CLIPImageProcessorFast": "transformers",
    "CLIPImageProcessorPil": "transformers",
    "CLIPFeatureExtractor": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
    "StableDiffusionSafetyChecker": "stable_diffusion",
}


@contextmanager
def open_model(setting: str, model: str, advice: str, *, weights: bool = True) -> Iterator[Path]:
    """The folder to load a model from inside, `model_folder`'s.

    Whatever the hub or the libraries raise becomes a RunError in one line.
    """
    folder = Path(model)
    try:
        folder = model_folder(model, weights=weights)
        yield folder
    except RunError:
        raise
    except Exception as error:
        raise _unloadable(setting, model, folder, error, advice) from error


def model_folder(model: str, *, weights: bool = True) -> Path:
    """The folder in diffusers (or transformers) layout of whatever a user gave as a model.

    model    a folder; a hub id, which is fetched; a one-file .safetensors of Stable Diffusion 1 or 2, or a folder
             that holds one, which is converted once (single_file.py); where all weights of a part are a variant's,
             such as `diffusion_pytorch_model.fp16.safetensors`, a folder of links in which they have the plain name
    weights  False fetches the settings alone
    Raises ValueError or OSError, whose words say what is wrong, for what is not there, pickled or holds an adapter.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return _convert(path)
    if not path.is_dir():
        _refuse_missing_path(model)
        path = fetch(successor(model), weights)
    _refuse_unsafe(path)
    if single_file := find_single_file(path):
        return convert(single_file)
    if (plain := without_variants(path)) != path:
        _refuse_unsafe(plain)
    return plain


def _convert(path: Path) -> Path:
    if path.suffix in PICKLED:
        raise ValueError(
            f"{path.name} is a pickle, which could run anything and is not read: take the .safetensors file"
        )
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is no .safetensors file")
    return convert(path)


def _refuse_missing_path(model: str) -> None:
    """A path that leads nowhere is not looked for on the hub, which would speak of ids."""
    is_id = HUB_ID.fullmatch(model)
    is_near = "/" in model and Path(model).parent.is_dir()
    if not is_id or is_near or Path(model).suffix in (*PICKLED, ".safetensors"):
        raise OSError("there is no such file or folder")


def _refuse_unsafe(folder: Path) -> None:
    _refuse_linked_folders(folder)
    _refuse_pickled_shards(folder)
    _refuse_adapters(folder)


def _unloadable(setting: str, model: str, folder: Path, error: Exception, advice: str) -> RunError:
    """What to tell of a model that cannot be loaded: what is wrong with it, in a line, and what to give."""
    what = str(error).strip().split("\n")[0] or type(error).__name__
    pickled = sorted(path for path in _files(folder) if path.suffix in PICKLED)
    if pickled and isinstance(error, OSError):
        name = pickled[0].relative_to(folder)
        what = f"it has only pickled weights, such as {name}, which could run anything and are not read: {what}"
    return RunError(f"{setting} {model!r} could not be loaded ({what}): {advice}")


def refuse_code(folder: Path) -> None:
    """Refuse a pipeline's folder with modules of Python in it, or that names parts which Stable Diffusion has not.

    A part that is a pipeline itself would bring an index of its own. Raises ValueError, as loaders do for whatever is
    wrong in a model.
    """
    if modules := sorted(path for path in folder.rglob("*.py")):
        raise ValueError(f"it holds code, {modules[0].relative_to(folder)}, which is not run")
    top = folder / "model_index.json"
    if nested := sorted(path for path in folder.rglob(top.name) if path != top):
        raise ValueError(f"it holds a pipeline within, {nested[0].relative_to(folder)}")
    for name, part in (settings_in(top) if top.is_file() else {}).items():
        if name == "_class_name" and part not in PIPELINES:
            raise ValueError(f"model_index.json names the pipeline {part}, which is not run")
        if isinstance(part, list) and not _is_known(*part):
            raise ValueError(f"model_index.json takes {name} from {part}, which is not run")


def settings_in(path: Path) -> dict[str, Any]:
    """What a JSON file of a model holds. Raises ValueError that names it where it is none."""
    name = path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON, {error}: copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no settings: copy or download it again")
    return content


def fit_tokenizer(tokenizer: Any, text_encoder: Any) -> None:
    """Have a CLIP tokenizer pad and cut to what its text encoder reads, where its own settings do not say."""
    longest = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), longest)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _is_known(library: str | None, kind: str | None) -> bool:
    if library == "diffusers" and str(kind).endswith("Scheduler") and str(kind).isidentifier():
        return True
    return (library, kind) == (None, None) or PARTS.get(kind) == library is not None


def _refuse_linked_folders(folder: Path) -> None:
    """What lies in one is loaded, and would not be looked at; the hub's cache links files alone."""
    if linked := sorted(path for path in _files(folder) if path.is_symlink() and path.is_dir()):
        raise ValueError(
            f"it holds a link to a folder, {linked[0].relative_to(folder)}, which is not followed"
        )


def _refuse_pickled_shards(folder: Path) -> None:
    """An index of safetensors may name other files, which transformers would open."""
    for index in folder.rglob("[!.]*.safetensors.index.json"):  # loaders take none that is hidden
        for name in read_json(index)["weight_map"].values():
            if not name.endswith(".safetensors"):
                raise ValueError(f"{index.relative_to(folder)} names {name}, which is not read")


def _refuse_adapters(folder: Path) -> None:
    """An adapter beside a model's weights is loaded with them by some versions of transformers, pickled or not."""
    if found := sorted(path for path in _files(folder) if path.name == "adapter_config.json"):
        raise ValueError(f"it holds an adapter, {found[0].relative_to(folder)}, which is not read")


def _files(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def load_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises RunError if it is none."""
    try:
        return read_tensors(path)
    except SafetensorError as error:
        raise RunError(f"{path} is no safetensors file ({error}): move its folder away") from error
