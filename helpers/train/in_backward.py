"""Step the optimizer inside the backward pass: each gradient is freed as soon as its weight is updated.

So no more than one weight's gradient exists at a time (LOMO, Lv et al. 2023, arXiv:2306.09782; torchtune calls it
optimizer_in_bwd), and weights can be kept in bf16, widened to float32 one by one for their step and rounded
stochastically (Gupta et al. 2015, arXiv:1502.02551), since a small update would be lost in bf16's eight bits.

What changes: no gradient accumulation; a CUDA graph cannot capture it; the gradient norm is known only when the pass
has ended, so a gradient is clipped by the larger of the last step's norm and the norm so far.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from helpers.config import TrainConfig
from helpers.core.errors import RunError
from helpers.host.device import Device
from helpers.train.data import generator


def check_settings(config: TrainConfig, device: Device, processes: int) -> None:
    """Raise RunError if optimizer_in_backward or weights_dtype conflicts with other settings or the device."""
    if config.weights_dtype == "bf16":
        if config.method != "full":
            raise RunError(
                "weights_dtype is 'bf16' but a LoRA's weights are few: set it to 'float32'"
            )
        if not config.optimizer_in_backward:
            raise RunError("weights_dtype is 'bf16': set optimizer_in_backward to True with it")
        if device.precision != "bf16":
            raise RunError(
                f"weights_dtype is 'bf16' but this training computes in {device.precision}: set mixed_precision to "
                "'bf16' where the GPU has it, else weights_dtype to 'float32'"
            )
    if config.optimizer_in_backward and config.gradient_accumulation_steps > 1:
        raise RunError(
            "optimizer_in_backward keeps no gradient to accumulate: set gradient_accumulation_steps to 1"
        )
    if config.optimizer_in_backward and processes > 1:
        raise RunError("optimizer_in_backward trains in one process: set it to False")


def weights_dtype(config: TrainConfig) -> torch.dtype:
    """Return the dtype that weights are stored in during a full fine-tune: float32 or bfloat16."""
    return torch.bfloat16 if config.weights_dtype == "bf16" else torch.float32


class StepInBackward:
    """A torch or bitsandbytes optimizer that is stepped weight by weight inside the backward pass."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Iterable[nn.Parameter],
        max_grad_norm: float,
        scaler: torch.amp.GradScaler | None = None,
        seed: int = 0,
    ) -> None:
        """Register a hook on each weight that steps the optimizer for it alone. `max_grad_norm` 0 does not clip."""
        self.optimizer, self.scaler, self.seed = optimizer, scaler, seed
        self.max_grad_norm = max_grad_norm or math.inf
        self.weights = list(weights)
        self.step = 0  # steps taken; with `seed` it seeds stochastic rounding
        device = self.weights[0].device
        self.last_norm = torch.zeros((), device=device)  # of the last step's gradient
        self.square = torch.zeros((), device=device)  # of the norm of this pass's finite gradients
        self.found_inf = torch.zeros((), dtype=torch.bool, device=device)  # in this pass
        groups = enumerate(optimizer.param_groups)
        self.group_of = {p: place for place, group in groups for p in group["params"]}
        for number, weight in enumerate(self.weights):
            weight.register_post_accumulate_grad_hook(
                lambda weight, number=number: self._step(weight, number)
            )

    @torch.no_grad()
    def _step(self, weight: nn.Parameter, number: int) -> None:
        gradient, dtype = weight.grad.float(), weight.dtype
        if self.scaler is not None:
            gradient /= self.scaler._get_scale_async()
        square = gradient.square().sum()
        is_finite = square.isfinite()
        self.found_inf |= ~is_finite
        # a NaN stays out of the norm, or the gradients after it would be divided by NaN
        self.square += square.where(is_finite, 0)
        norm = torch.maximum(self.square.sqrt(), self.last_norm)
        gradient /= (norm / self.max_grad_norm).clamp(min=1)
        # without reading it: the weight moves by momentum alone
        gradient.masked_fill_(~is_finite, 0)
        weight.grad = None
        weight.data = weight.data.float()
        weight.grad = gradient
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [groups[self.group_of[weight]] | {"params": [weight]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        weight.grad = None
        if dtype == torch.bfloat16:
            weight.data = round_stochastically(weight.data, self.seed, self.step, number)

    def resume(self, step: int, last_norm: float) -> None:
        """Continue after `step`, whose gradient norm was `last_norm`."""
        self.step = step
        self.last_norm.fill_(last_norm)

    def end_step(self) -> Tensor:
        """End a step: update fp16's gradient scale, and return the gradient norm, or NaN if it was not finite."""
        found_inf, norm = self.found_inf, self.square.sqrt()
        if self.scaler is not None:
            # GradScaler.step would look at all gradients at once; update() wants what it would have found
            state = self.scaler._per_optimizer_states[id(self.optimizer)]
            state["found_inf_per_device"] = {found_inf.device: found_inf.float().reshape(1)}
            self.scaler.update()
        self.last_norm = norm
        self.square, self.found_inf = torch.zeros_like(norm), torch.zeros_like(found_inf)
        self.step += 1
        return norm.where(~found_inf, math.nan)


def round_stochastically(values: Tensor, *key: object) -> Tensor:
    """Round float32 values up or down to bfloat16 at random, without bias; `key` is the seed."""
    source = generator("rounding", *key, device=values.device)
    bits = values.view(torch.int32)
    noise = torch.empty_like(bits).random_(0, 1 << 16, generator=source)  # in the same layout
    rounded = ((bits + noise) & -65536).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)
