"""Open untrusted models safely: only safetensors and JSON are read, so that no code in a model can run.

Loading a pickle runs any code in it, and so does a Python module beside the weights where a loader looks for one.
Neither is ever opened, whatever the libraries would allow. Loaders get a folder in diffusers layout, never a hub id or
a one-file checkpoint: `model_folder` makes one from what a user gave, and checks it.
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
from helpers.models.families import all_families
from helpers.models.hub_model import fetch_lora, fetch_model, rename_variants, successor
from helpers.models.single_file import convert, find_single_file

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}
PARTS = {  # classes that pipelines of any family may have beside its own, by library
    "diffusers": ("AutoencoderKL",),
    "transformers": (
        *("CLIPTokenizer", "CLIPTokenizerFast", "CLIPFeatureExtractor"),
        *("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
        "CLIPVisionModelWithProjection",
    ),
    "stable_diffusion": ("StableDiffusionSafetyChecker",),
}


@contextmanager
def open_model(setting: str, model: str, advice: str, *, weights: bool = True) -> Iterator[Path]:
    """Yield a model's folder, and turn any error inside this context into a RunError of one line.

    setting  the setting that names the model, for the error
    advice   what to do next, for the error
    weights  False downloads only the config files
    """
    folder = Path(model)
    try:
        folder = model_folder(model, weights=weights)
        yield folder
    except RunError:
        raise
    except Exception as error:
        what = str(error).strip().split("\n")[0] or type(error).__name__
        pickled = sorted(path for path in folder.rglob("*") if path.suffix in PICKLED)
        if pickled and isinstance(error, OSError):
            name = pickled[0].relative_to(folder)
            what = f"it has only pickled weights, such as {name}, which could run any code and are not read: {what}"
        raise RunError(f"{setting} {model!r} could not be loaded ({what}): {advice}") from error


def model_folder(model: str, *, weights: bool = True) -> Path:
    """Find, download or convert a model; return its folder in diffusers (or transformers) layout.

    model    a folder; a hub id, which is downloaded; a one-file .safetensors of Stable Diffusion 1, 2 or XL, or a
             folder with one, which is converted once (single_file.py); if a part has only weights of a variant, such as
             `diffusion_pytorch_model.fp16.safetensors`, a folder of links with the usual names is returned
    weights  False downloads only the config files
    Raises ValueError or OSError, with the reason, for a model that is missing, pickled, or has an adapter.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return convert(_require_safetensors(path))
    if not path.is_dir():
        _refuse_missing_path(model)
        path = fetch_model(successor(model), weights)
    _refuse_unsafe(path)
    if single_file := find_single_file(path):
        return convert(single_file)
    if (plain := rename_variants(path)) != path:
        _refuse_unsafe(plain)
    return plain


def lora_file(model: str, name: str) -> Path:
    """Find or download a LoRA's file.

    model  a .safetensors file; a folder or a hub id with the file `name`, or with one .safetensors file alone
    Raises ValueError or OSError, with the reason, for a LoRA that is missing, pickled, or one of several.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return _require_safetensors(path)
    if not path.is_dir():
        _refuse_missing_path(model)
        return fetch_lora(model, name)
    if (path / name).is_file():
        return path / name
    found = sorted(path.glob("[!.]*.safetensors"))
    if len(found) == 1:
        return found[0]
    if pickled := sorted(file.name for file in path.iterdir() if file.suffix in PICKLED):
        raise ValueError(f"{pickled[0]} is a pickle, which could run any code and is not read")
    raise ValueError(f"the folder holds {len(found)} .safetensors files: give the path of one")


def _require_safetensors(path: Path) -> Path:
    if path.suffix.lower() in PICKLED:
        raise ValueError(
            f"{path.name} is a pickle, which could run any code and is not read: take the .safetensors file"
        )
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path.name} is no .safetensors file")
    return path


def _refuse_missing_path(model: str) -> None:
    is_id = HUB_ID.fullmatch(model)
    is_near = "/" in model and Path(model).parent.is_dir()
    if not is_id or is_near or Path(model).suffix in (*PICKLED, ".safetensors"):
        # the Hub's own error would speak only of ids
        raise OSError("there is no such file or folder")


def _refuse_unsafe(folder: Path) -> None:
    files = sorted(folder.rglob("*"))
    # files in a linked folder are loaded, but would not be checked; the Hub's cache links only files
    if linked := [path for path in files if path.is_symlink() and path.is_dir()]:
        raise ValueError(
            f"it holds a link to a folder, {linked[0].relative_to(folder)}, which is not followed"
        )
    # transformers opens any file that an index of shards names
    for index in folder.rglob("[!.]*.safetensors.index.json"):  # loaders ignore hidden ones
        for name in read_json(index)["weight_map"].values():
            if not name.endswith(".safetensors"):
                raise ValueError(f"{index.relative_to(folder)} names {name}, which is not read")
    # some versions of transformers load an adapter with the weights, even if it is pickled
    if found := [path for path in files if path.name == "adapter_config.json"]:
        raise ValueError(f"it holds an adapter, {found[0].relative_to(folder)}, which is not read")


def refuse_code(folder: Path) -> None:
    """Raise ValueError if a pipeline's folder has Python modules, nested pipelines, or unknown component classes."""
    if modules := sorted(path for path in folder.rglob("*.py")):
        raise ValueError(f"it holds code, {modules[0].relative_to(folder)}, which is not run")
    top = folder / "model_index.json"
    if nested := sorted(path for path in folder.rglob(top.name) if path != top):
        raise ValueError(f"it holds a pipeline within, {nested[0].relative_to(folder)}")
    for name, part in (settings_in(top) if top.is_file() else {}).items():
        if name == "_class_name" and part not in {f.PIPELINE.__name__ for f in all_families()}:
            raise ValueError(f"model_index.json names the pipeline {part}, which is not run")
        if isinstance(part, list) and not _is_known(*part):
            raise ValueError(f"model_index.json takes {name} from {part}, which is not run")


def settings_in(path: Path) -> dict[str, Any]:
    """Return a model's JSON config file as a dict. If the file holds none, a ValueError names the file."""
    name = path.name if path.name == "model_index.json" else f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise ValueError(f"{name} is missing")
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON, {error}: copy or download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no settings: copy or download it again")
    return content


def fit_tokenizer(tokenizer: Any, text_encoder: Any) -> None:
    """Limit a CLIP tokenizer to its text encoder's length, and set a padding token if the tokenizer has none."""
    longest = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = min(int(tokenizer.model_max_length), longest)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _is_known(library: str | None, kind: str | None) -> bool:
    if library == "diffusers" and str(kind).endswith("Scheduler") and str(kind).isidentifier():
        return True
    own = {c.__name__ for f in all_families() for c in (f.DENOISER[1], *f.TEXT_ENCODERS.values())}
    known = kind in own or kind in PARTS.get(library, ())
    return (library, kind) == (None, None) or (
        library in ("diffusers", "transformers", "stable_diffusion") and known
    )


def load_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file to the CPU. Raises RunError if the file is not safetensors."""
    try:
        return read_tensors(path)
    except SafetensorError as error:
        what = f"{path} is no safetensors file ({error})"
        raise RunError(f"{what}: put a whole copy in its place") from error
