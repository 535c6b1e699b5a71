"""Make norms and LoRA layers compute in half precision, where autocast and peft would cast to float32 and back."""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)


class _GroupNorm(nn.GroupNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            is_last = inputs.is_cuda and inputs.is_contiguous(memory_format=torch.channels_last)
            if is_last and (channels_last_norm := _channels_last_norm()):
                return channels_last_norm(inputs, self.num_groups, self.weight, self.bias, self.eps)
            return _plain_norm(inputs, self.num_groups, self.weight, self.bias, self.eps)


class _LayerNorm(nn.LayerNorm):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            weight, bias = self.weight.to(inputs.dtype), self.bias.to(inputs.dtype)
            return F.layer_norm(inputs, self.normalized_shape, weight, bias, self.eps)


@lru_cache(maxsize=1)
def _channels_last_norm() -> Callable[..., Tensor] | None:
    """Return the channels-last group norm in Triton, or None if Triton does not run on this GPU."""
    try:
        from helpers.train.group_norm import group_norm  # PyTorch for CUDA brings Triton

        inputs = torch.randn(1, 32, 4, 4, device="cuda", dtype=torch.float16)
        weight, bias = torch.ones(2, 32, device="cuda")
        given = (inputs, 8, weight, bias, 1e-5)
        if (group_norm(*given) - _plain_norm(*given)).abs().max() > 0.01:
            raise ValueError("its result is wrong")
    except Exception as error:  # an old GPU, a missing compiler
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        log.warning("Triton does not run here (%s): norms take somewhat longer", reason)
        return None
    return group_norm


def _plain_norm(inputs: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.group_norm(inputs, groups, weight.to(inputs.dtype), bias.to(inputs.dtype), eps)


def keep_half_precision(unet: UNet2DConditionModel) -> None:
    """Make a UNet's norms and LoRA layers return half precision, which saves thousands of cast kernels a step.

    Norms still sum in float32 inside their kernel, as when a pipeline samples in half precision.
    """
    for module in unet.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
        elif type(module) is nn.LayerNorm:
            module.__class__ = _LayerNorm
        elif isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False
