"""The memory of forward and backward passes, counted on a model without memory (PyTorch's fake tensors)."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.host.device import Device
from helpers.train.model import TextAndUNet


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self._new_storages((args, kwargs))  # of weights: views of them take no memory
        result = function(*args, **(kwargs or {}))
        for storage in self._new_storages(result):
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, storage.nbytes())
        return result

    def _new_storages(self, tree: Any) -> list[torch.UntypedStorage]:
        """The storages of the tensors in a tree that were not met before."""
        storages = [
            leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)
        ]
        new = list(dict.fromkeys(s for s in storages if s not in self.seen))
        self.seen.update(dict.fromkeys(new))
        return new

    def _gone(self, count: int) -> None:
        self.bytes -= count


def _on_cpu(module: nn.Module, mode: FakeTensorMode) -> None:
    """Have a module on the meta device pass for one on a CPU, whose autocast and attention kernels then act."""
    cpu = torch.device("cpu")
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                fake = FakeTensor(mode, p.data, cpu)
                part._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = FakeTensor(mode, tensor, cpu)


def random_inputs(module: nn.Module, batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a module that is trained takes: latents of `side` squared, timesteps, and texts or their token ids."""
    if isinstance(module, TextAndUNet):
        unet, length = module.unet, module.text_encoder.config.max_position_embeddings
        texts = torch.zeros(batch, length, dtype=torch.long)
    else:
        unet = module
        texts = torch.randn(batch, 77, unet.config.cross_attention_dim)
    return torch.randn(batch, unet.config.in_channels, side, side), torch.zeros(batch), texts


def pass_bytes(module: nn.Module, batch: int, side: int, device: Device, passes: int = 1) -> int:
    """What forward and backward passes hold at their peak, gradients included, weights and moments not.

    module  what is trained, on the meta device; it is spoilt for other uses
    side    of the square latents
    passes  one after another into the same gradients, as in gradient accumulation
    """
    mode = FakeTensorMode()
    _on_cpu(module, mode)
    module.train()
    with mode, _Live() as live:
        inputs = random_inputs(module, batch, side)
        # a third holds what the second does; captured, the gradients' buffers are there in the first
        for _ in range(2 if device.captures else min(passes, 2)):
            with torch.autocast("cpu", device.dtype, enabled=device.precision != "no"):
                noise = module(*inputs).sample
            noise.float().square().mean().backward()
            del noise
    return live.peak
