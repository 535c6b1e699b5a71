"""One UNet in memory that holds the base's weights, the tuned ones, a checkpoint's, or any point on the way."""

import re
import warnings
from functools import cached_property

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from helpers.errors import RunError
from helpers.foreign import load_file, reading
from helpers.run import Run
from helpers.store import damage, folder_hash

STEP = re.compile(r"step-\d{6,}")
CHECKPOINT_WEIGHTS = "weights.safetensors"
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"


class Weights:
    """Puts weights into a UNet by name: `base`, `tuned`, or a checkpoint such as `step-000250`.

    strength  how far from the base (0) to the named weights (1); for a LoRA, which adds a product to the
              base's weights, this is the LoRA's scale
    Sets that were read stay in the computer's memory, so that changing to and fro reads no file.
    """

    def __init__(self, run: Run, unet: UNet2DConditionModel, base_model: str) -> None:
        """`unet` has the tuned weights."""
        self.run, self.unet, self.base_model = run, unet, base_model
        self.tuned = {k: v.detach().cpu().clone() for k, v in unet.state_dict().items()}
        self.now: tuple[str, float] = ("tuned", 1.0)

    @cached_property
    def base(self) -> dict[str, Tensor]:
        given = {"subfolder": "unet", "torch_dtype": self.unet.dtype, "use_safetensors": True}
        advice = "put back the base model that 04_train was given"
        with reading("base_model", self.base_model, advice) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer diffusers say dtype
            return UNet2DConditionModel.from_pretrained(folder, **given).state_dict()

    def steps(self) -> list[str]:
        """The checkpoints that were kept, oldest first."""
        names = (folder.name for folder in self.run.checkpoints.glob("step-*"))
        return sorted(name for name in names if STEP.fullmatch(name))

    def put(self, name: str, strength: float = 1.0) -> None:
        """Have the UNet hold the named weights at a strength. Raises RunError for a checkpoint that is not there."""
        if self.now == (name, strength):
            return
        if name == "base" or strength == 0:
            wanted = self.base
        elif strength == 1:
            wanted = self._named(name)
        else:
            there = self._named(name)
            wanted = {
                k: torch.lerp(self.base[k].float(), there[k].float(), strength) for k in there
            }
        self.unet.load_state_dict(wanted)
        self.now = (name, strength)

    def _named(self, name: str) -> dict[str, Tensor]:
        return self.tuned if name == "tuned" else self._checkpoint(name)

    def _checkpoint(self, name: str) -> dict[str, Tensor]:
        """What a checkpoint trained, in place of the base's or, for a LoRA, added to it."""
        self.hash_of(name)
        trained = load_file(self.run.checkpoints / name / CHECKPOINT_WEIGHTS)
        merged = {k: v.float() for k, v in self.base.items()}
        for key, tensor in trained.items():
            if key.endswith(LORA_DOWN):
                layer = key.removesuffix(LORA_DOWN)
                change = trained[layer + LORA_UP].flatten(1) @ tensor.flatten(1)
                target = merged[layer + ".weight"]
                merged[layer + ".weight"] = target + change.view_as(target)
            elif not key.endswith(LORA_UP):
                merged[key] = tensor
        return {k: v.to(self.unet.dtype) for k, v in merged.items()}

    def hash_of(self, name: str) -> str:
        """The SHA-256 that stands for the named weights; the base's goes with the tuned one's."""
        if not STEP.fullmatch(name):
            return folder_hash(self.run.model)
        folder = self.run.checkpoints / name
        if what := damage(folder):
            raise RunError(f"{what}: choose one of {', '.join([*self.steps(), 'tuned'])}")
        return folder_hash(folder)
