"""A light LoRA: what a training changed, kept to a low rank by a singular value decomposition (SVD) of each layer.

It makes a LoRA out of a full fine-tune, and a smaller one out of a LoRA. Of all matrices of a rank, the truncated SVD
is the nearest to a layer's change (Eckart and Young 1936).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.core.errors import RunError
from helpers.models.families import State
from helpers.models.lora import Lora, lora_of

Change = Callable[[str], Tensor]
# layers of the denoiser that sd-scripts gives no LoRA
ENDS = ("conv_in", "conv_out", "time_embedding", "add_embedding")


@dataclass(frozen=True)
class LightLora:
    """A LoRA that stands for a larger change, and what it leaves out, as shares of the squared change of all weights.

    left_out  in weights that no LoRA has a place for: norms, biases, embeddings, and the ends of the denoiser
    """

    lora: Lora
    rank: int
    kept: float
    left_out: float

    @property
    def size_mb(self) -> float:
        return sum(t.numel() * t.element_size() for t in self.lora.tensors.values()) / 1e6

    def __str__(self) -> str:
        return (
            f"a LoRA of rank {self.rank}, {self.size_mb:.1f} MB, keeps {self.kept:.1%} of the squared change; "
            f"{self.left_out:.1%} lies in norms, biases and other weights that no LoRA has"
        )


def make_light_lora(
    base: State, change: Change, rank: int, share: float, device: torch.device
) -> LightLora:
    """Return the LoRA that is nearest to a change of `base`, in float16, with the same rank in all layers.

    base    weights, as {component.name: tensor}
    change  what was added to a weight, by its name, in float32
    rank    of the LoRA, at most that of the largest layer; 0 takes the lowest rank that keeps `share`
    share   of the squared change of all weights, from 0 to 1
    Raises RunError if nothing has changed, or no rank keeps `share`.
    """
    squares = {name: float(change(name).square().sum()) for name in base}
    layers = [name for name, square in squares.items() if square and _is_layer(name, base[name])]
    if not layers:
        raise RunError("lora_rank: the model's layers are the base's, so there is nothing to keep")
    total = sum(squares.values())

    def matrix(name: str) -> Tensor:
        return change(name).to(device).flatten(1)  # (out, in); a kernel is part of `in`

    if not rank:
        spectra = [torch.linalg.svdvals(matrix(name)).square() for name in layers]
        rank = _lowest_rank(spectra, share * total)
    rank = min(rank, max(min(base[name].flatten(1).shape) for name in layers))
    kept, factors = 0.0, {}
    for name in layers:
        left, values, right = torch.linalg.svd(matrix(name), full_matrices=False)
        kept += float(values[:rank].square().sum())
        halves = values[:rank].sqrt()  # in both factors, so that neither leaves float16's range
        up, down = left[:, :rank] * halves, halves[:, None] * right[:rank]
        missing = rank - len(halves)  # of a narrow layer
        up, down = F.pad(up, (0, missing)), F.pad(down, (0, 0, 0, missing))
        factors[name.removesuffix(".weight")] = _shaped(up, down, base[name])
    left_out = 1 - sum(squares[name] for name in layers) / total
    return LightLora(lora_of(factors), rank, kept / total, left_out)


def _is_layer(name: str, weight: Tensor) -> bool:
    _, module, *_ = name.split(".")
    is_matrix = name.endswith(".weight") and weight.ndim in (2, 4)
    return is_matrix and ".embeddings." not in name and module not in (*ENDS, "text_projection")


def _lowest_rank(spectra: list[Tensor], wanted: float) -> int:
    ranks = max(map(len, spectra))
    added = sum(F.pad(squares.cpu(), (0, ranks - len(squares))) for squares in spectra)
    kept = added.double().cumsum(0)
    if kept[-1] < wanted * (1 - 1e-6):  # beyond rounding
        most = f"{float(kept[-1]) / wanted:.2f} of it"
        raise RunError(f"lora_share: the rest lies in norms and biases; all ranks keep {most}")
    return int((kept >= min(wanted, float(kept[-1]))).int().argmax()) + 1


def _shaped(up: Tensor, down: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both factors in float16: of a convolution (out, rank, 1, 1) and (rank, in, height, width)."""
    if weight.ndim == 4:
        up, down = up[..., None, None], down.view(-1, *weight.shape[1:])
    return up.half().cpu().contiguous(), down.half().cpu().contiguous()
