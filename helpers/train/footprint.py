"""The memory of a forward and backward pass, counted on a UNet without memory (PyTorch's meta device)."""

import weakref
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.seen: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self.seen:
                storage = tensor.untyped_storage()
                self.seen[storage] = True
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return result

    def _gone(self, count: int) -> None:
        self.bytes -= count


class _Fused(torch.autograd.Function):
    """Attention that keeps its inputs and its output, as SDPA's fused kernels do, and no square matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Attend:
    """diffusers' attention processor with that kernel in it."""

    def __call__(
        self, attention: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attention.to_q(hidden), attention.to_k(context), attention.to_v(context)
        return attention.to_out[0](_Fused.apply(query, key, value))


def _autocast(module: nn.Module, dtype: torch.dtype) -> None:
    """Do to a module's inputs what autocast does: norms in float32, convolutions and products in half."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm):
            part.float().register_forward_pre_hook(lambda _, given: (given[0].float(),))
        elif isinstance(part, nn.Conv2d | nn.Linear):
            part.to(dtype).register_forward_pre_hook(lambda _, given: (given[0].to(dtype),))


def activation_bytes(
    unet: UNet2DConditionModel, batch: int, side: int, dtype: torch.dtype
) -> float:
    """What a forward and backward pass holds at its peak beside weights, their gradients and moments.

    unet   on the meta device; it is spoilt for other uses
    side   of the square latents
    dtype  of autocast; in half precision, trained weights have a copy in it
    """
    copies = 0
    if dtype != torch.float32:
        copies = sum(2 * p.numel() for p in unet.parameters() if p.requires_grad)
        _autocast(unet, dtype)
    for p in unet.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    unet.train()
    unet.set_attn_processor(_Attend())
    with torch.device("meta"), _Live() as live:
        latents = torch.empty(batch, unet.config.in_channels, side, side)
        texts = torch.empty(batch, 77, unet.config.cross_attention_dim)
        noise = unet(latents, torch.zeros(batch), texts).sample
        noise.float().square().mean().backward()
    return live.peak + copies
