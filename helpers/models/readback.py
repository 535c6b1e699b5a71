"""Read written weights back, and compare every tensor with the trained tensor by name, shape and value."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from helpers.core.errors import RunError

LOADED_DIFFERENTLY = "text_model."  # in files, but not in transformers 5.6's modules
ROUNDINGS = 16  # in eps of the largest value: sums in another order differ by a few


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).numpy()).cast("B")


def effective_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's (name, tensor) pairs with the LoRA merged in. The names are those of a model without LoRA."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, LoraLayer)}
    for name, tensor in module.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.partition(".base_layer.")[0])
        if layer is not None and name.endswith(".base_layer.weight"):
            (adapter,) = layer.active_adapters
            tensor = tensor.float() + layer.get_delta_weight(adapter).float()
        yield name.replace(".base_layer.", ".").removeprefix(LOADED_DIFFERENTLY), tensor


def require_names(path: Path, expected: Iterable[tuple[str, Tensor]]) -> None:
    """Raise RunError unless a safetensors file has exactly the expected tensor names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected}
    try:
        with safe_open(path, "pt") as file:
            found = {
                name.removeprefix(LOADED_DIFFERENTLY): tuple(file.get_slice(name).get_shape())
                for name in file.keys()
            }
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    _require_none(path, (name for name, _ in shapes.items() ^ found.items()))


def require_equal(
    path: Path,
    expected: Iterable[tuple[str, Tensor]],
    found: Iterable[tuple[str, Tensor]],
    rounded: bool = False,
) -> None:
    """Raise RunError unless `found` has the same tensors as `expected`, by name and value.

    `expected` is rounded to the dtype of `found` first. With `rounded`, values may differ by rounding errors of sums in
    that dtype (ROUNDINGS eps of the tensor's largest value); without it, not at all.
    """
    theirs, different = dict(found), []
    for name, ours in expected:
        other = theirs.pop(name, None)
        if other is None or not _is_same(ours, other, rounded):
            different.append(name)
    _require_none(path, [*different, *theirs])


def _is_same(ours: Tensor, theirs: Tensor, rounded: bool) -> bool:
    if ours.shape != theirs.shape:
        return False
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    within = ROUNDINGS * torch.finfo(theirs.dtype).eps * float(ours.abs().max()) if rounded else 0
    ours = ours.to(theirs.dtype)
    return torch.allclose(ours.float(), theirs.float(), rtol=0, atol=within, equal_nan=True)


def _require_none(path: Path, names: Iterable[str]) -> None:
    layers = sorted({name.removesuffix(".weight").removesuffix(".bias") for name in names})
    if layers:
        more = f" and {len(layers) - 4} more layers" if len(layers) > 4 else ""
        raise RunError(
            f"{final_path(path)} does not hold what was trained ({', '.join(layers[:4])}{more}), so nothing was "
            "replaced: run the notebook again, and report it if it stays"
        )


def unreadable(path: Path, error: Exception) -> RunError:
    """Return the RunError for a written file that cannot be loaded."""
    what = str(error).strip().split("\n")[0] or type(error).__name__
    return RunError(
        f"{final_path(path)} cannot be read back ({what}), so nothing was replaced: run the notebook again, "
        "and report it if it stays"
    )


def final_path(path: Path) -> Path:
    """Return the final path of a file that `replacing_folder` has written under a temporary name."""
    return Path(*(re.sub(r"^\.(.+)\.part$", r"\1", part) for part in path.parts))
