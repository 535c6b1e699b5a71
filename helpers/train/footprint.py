"""Count the activation memory of forward and backward passes on PyTorch's fake tensors, which take no memory."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.config import TrainConfig
from helpers.host.device import Device
from helpers.train.model import TextAndUNet


class _LiveBytes(TorchDispatchMode):
    """A counter of the bytes of live tensors created inside this context, now and at the peak."""

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
        tensors = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
        storages = dict.fromkeys(tensor.untyped_storage() for tensor in tensors)
        new = [storage for storage in storages if storage not in self.seen]
        self.seen.update(dict.fromkeys(new))
        return new

    def _free(self, count: int) -> None:
        self.bytes -= count


def _fake_cpu(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a meta-device module's tensors by fake CPU tensors, on which autocast and attention kernels run."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = FakeTensor(mode, tensor.data, torch.device("cpu"))
                    is_weight = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake


def random_inputs(module: nn.Module, batch: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random latents (batch, C, side, side), zero timesteps, and random text embeddings or zero token ids."""
    if isinstance(module, TextAndUNet):
        unet, length = module.unet, module.text_encoder.config.max_position_embeddings
        texts = torch.zeros(batch, length, dtype=torch.long)
    else:
        unet, texts = module, torch.randn(batch, 77, module.config.cross_attention_dim)
    return torch.randn(batch, unet.config.in_channels, side, side), torch.zeros(batch), texts


def peak_activation_bytes(module: nn.Module, side: int, config: TrainConfig, device: Device) -> int:
    """Count the peak bytes of activations and gradients in a training step, without weights.

    `module` is the trained module on the meta device, useless afterwards; the latents are `side` x `side`.
    """
    mode, frees_gradients = FakeTensorMode(), config.optimizer_in_backward
    _fake_cpu(module, mode)
    module.train()
    if frees_gradients:
        for p in module.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with mode, _LiveBytes() as live:
        inputs = random_inputs(module, config.train_batch_size, side)
        cast = {"enabled": device.precision != "no", "cache_enabled": not frees_gradients}
        passes = min(config.gradient_accumulation_steps, 2)  # a third holds what the second does
        if device.captures and not frees_gradients:
            passes = 2  # gradient buffers exist in the first
        for _ in range(passes):
            with torch.autocast("cpu", device.dtype, **cast):
                noise = module(*inputs).sample
            noise.float().square().mean().backward()
            del noise
    return live.peak
