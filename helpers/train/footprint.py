"""Count the activation memory of forward and backward passes on PyTorch's fake tensors, which occupy no memory."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.host.device import Device
from helpers.train.model import TextAndUNet


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were created inside this context, now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self._new_storages((args, kwargs))  # weights are not counted, nor are views of them
        result = function(*args, **(kwargs or {}))
        for storage in self._new_storages(result):
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._free, storage.nbytes())
        return result

    def _new_storages(self, tree: Any) -> list[torch.UntypedStorage]:
        """Return the tensor storages in `tree` that were not seen in earlier calls."""
        storages = [
            leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)
        ]
        new = list(dict.fromkeys(s for s in storages if s not in self.seen))
        self.seen.update(dict.fromkeys(new))
        return new

    def _free(self, count: int) -> None:
        self.bytes -= count


def _fake_cpu(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a meta-device module's tensors by fake tensors that appear to be on the CPU.

    Autocast and attention kernels then run.
    """
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
    """Return inputs for the module to be trained: latents, timesteps, and text embeddings or token ids.

    The latents are (batch, C, side, side). Latents and embeddings are random, timesteps and ids zero.
    """
    if isinstance(module, TextAndUNet):
        unet, length = module.unet, module.text_encoder.config.max_position_embeddings
        texts = torch.zeros(batch, length, dtype=torch.long)
    else:
        unet = module
        texts = torch.randn(batch, 77, unet.config.cross_attention_dim)
    return torch.randn(batch, unet.config.in_channels, side, side), torch.zeros(batch), texts


def peak_activation_bytes(
    module: nn.Module,
    batch: int,
    side: int,
    device: Device,
    passes: int = 1,
    frees_gradients: bool = False,
) -> int:
    """Count the peak bytes of activations and gradients in forward and backward passes, without weights.

    module  the trained module on the meta device; it cannot be used for anything else after
    side    of the square latents
    passes  gradient accumulation steps
    frees_gradients  each as soon as it is there, as with optimizer_in_backward
    """
    mode = FakeTensorMode()
    _fake_cpu(module, mode)
    module.train()
    if frees_gradients:
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with mode, _LiveBytes() as live:
        inputs = random_inputs(module, batch, side)
        # a third pass holds what the second does; if captured, gradient buffers exist in the first
        for _ in range(2 if device.captures and not frees_gradients else min(passes, 2)):
            with torch.autocast(
                "cpu",
                device.dtype,
                enabled=device.precision != "no",
                cache_enabled=not frees_gradients,
            ):
                noise = module(*inputs).sample
            noise.float().square().mean().backward()
            del noise
    return live.peak
