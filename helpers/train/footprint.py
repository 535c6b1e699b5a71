"""Count the activation memory that a training step needs. The step runs on PyTorch's fake tensors, which need none."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.config import TrainConfig
from helpers.host.device import Device
from helpers.models.families import Conditioning
from helpers.train.model import Denoiser


class _LiveBytes(TorchDispatchMode):
    """The current and peak bytes of the tensors created inside this context."""

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
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    # on the CPU, so that autocast and attention kernels run
                    fake = FakeTensor(mode, tensor.data, torch.device("cpu"))
                    is_weight = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake


def random_inputs(model: Denoiser, batch: int, side: int) -> tuple[Tensor, Tensor, Conditioning]:
    """Return random latents (batch, C, side, side), timesteps of 0, and random text embeddings or token ids of 0."""
    denoiser = model.denoiser
    conditioning = model.family.example_conditioning(denoiser, batch)
    for number, name in enumerate(model.encoders, 1):
        length = getattr(model, name).config.max_position_embeddings
        ids = torch.zeros(batch, length, dtype=torch.long)
        conditioning["input_ids" if number == 1 else f"input_ids_{number}"] = ids
    latents = torch.randn(batch, denoiser.config.in_channels, side, side)
    return latents, torch.zeros(batch), conditioning


def peak_forward_bytes(module: nn.Module, device: Device, run: Callable[[], object]) -> int:
    """Count the peak bytes that `run` makes beside the weights of a module on the meta device, without gradients.

    `run` makes its own inputs and calls the module, which is useless afterwards.
    """
    mode = FakeTensorMode()
    _fake_cpu(module, mode)
    module.eval()
    cast = torch.autocast("cpu", device.dtype, enabled=device.precision != "no")
    with torch.no_grad(), mode, _LiveBytes() as live, cast:
        run()
    return live.peak


def peak_activation_bytes(module: Denoiser, side: int, config: TrainConfig, device: Device) -> int:
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
        # a second pass begins with gradients, as a captured first does, and a third holds what the second does
        has_gradients = config.gradient_accumulation_steps > 1 or device.captures
        is_lora = config.method == "lora"  # its gradients are few, and are added below
        for _ in range(2 if has_gradients and not frees_gradients and not is_lora else 1):
            with torch.autocast("cpu", device.dtype, **cast):
                noise = module(*inputs)
            noise.float().square().mean().backward()
            del noise
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return live.peak + (trained if has_gradients and is_lora else 0)
