"""A light LoRA: what a training changed, kept to a low rank by a singular value decomposition (SVD) of each layer.

It makes a LoRA out of a full fine-tune, and a smaller one out of a LoRA. Of all matrices of a rank, the truncated SVD
is the nearest to a layer's change (Eckart and Young 1936).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.core.errors import RunError
from helpers.models.families import State
from helpers.models.lora import Lora, lora_of

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
    base: State, tuned: State, rank: int, share: float, device: torch.device
) -> LightLora:
    """Return the LoRA that takes `base` nearest to `tuned`, in float16, with the same rank in all layers.

    base, tuned  weights of a pipeline, as {component.name: tensor}
    rank         of the LoRA, at most that of the largest layer; 0 takes the lowest rank that keeps `share`
    share        of the squared change of all weights, from 0 to 1
    Raises RunError if nothing has changed, or no rank keeps `share`.
    """
    total, in_layers = _squared_change(base, tuned)
    if not in_layers:
        raise RunError("lora_rank: the model's layers are the base's, so there is nothing to keep")
    spectra = {}
    if not rank:
        for name, change in _changes(base, tuned, device):
            spectra[name] = torch.linalg.svdvals(change).square()
        rank = _lowest_rank(spectra, share * total)
    rank = min(rank, max(min(base[name].flatten(1).shape) for name in in_layers))
    kept, factors = 0.0, {}
    for name, change in _changes(base, tuned, device):
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        kept += float(values[:rank].square().sum())
        halves = values[:rank].sqrt()  # in both factors, so that neither leaves float16's range
        up, down = left[:, :rank] * halves, halves[:, None] * right[:rank]
        missing = rank - len(halves)  # of a narrow layer
        factors[name.removesuffix(".weight")] = _shaped(
            F.pad(up, (0, missing)), F.pad(down, (0, 0, 0, missing)), base[name]
        )
    return LightLora(lora_of(factors), rank, kept / total, 1 - sum(in_layers.values()) / total)


def _squared_change(base: State, tuned: State) -> tuple[float, dict[str, float]]:
    """Return the squared change of all weights, and of each changed layer that a LoRA has."""
    found = {n: float((tuned[n].float() - own.float()).square().sum()) for n, own in base.items()}
    return sum(found.values()), {n: s for n, s in found.items() if s and _is_layer(n, base[n])}


def _is_layer(name: str, weight: Tensor) -> bool:
    _, module, *_ = name.split(".")
    is_matrix = name.endswith(".weight") and weight.ndim in (2, 4)
    return is_matrix and ".embeddings." not in name and module not in (*ENDS, "text_projection")


def _changes(base: State, tuned: State, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's change as a float32 matrix (out, in); a convolution's kernel is part of `in`."""
    for name, own in base.items():
        if _is_layer(name, own) and not torch.equal(tuned[name], own):
            change = tuned[name].to(device).float() - own.to(device).float()
            yield name, change.flatten(1)


def _lowest_rank(spectra: dict[str, Tensor], wanted: float) -> int:
    ranks = max(map(len, spectra.values()))
    added = sum(F.pad(squares.cpu(), (0, ranks - len(squares))) for squares in spectra.values())
    kept = added.double().cumsum(0)
    if kept[-1] < wanted:
        most = f"{float(kept[-1]) / wanted:.2f} of it"
        raise RunError(f"lora_share: the rest lies in norms and biases; all ranks keep {most}")
    return int((kept >= wanted).int().argmax()) + 1


def _shaped(up: Tensor, down: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both factors in float16: of a convolution (out, rank, 1, 1) and (rank, in, height, width)."""
    if weight.ndim == 4:
        up, down = up[..., None, None], down.view(-1, *weight.shape[1:])
    return up.half().cpu().contiguous(), down.half().cpu().contiguous()
