"""Load the weights of the base model, the tuned model or a checkpoint into one pipeline, by name."""

import re
from functools import cached_property

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, folder_hash, read_json
from helpers.core.run import Run
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import fingerprint
from helpers.models.untrusted import load_file, open_model

STEP = re.compile(r"step-\d{6,}")
# of a checkpoint; previews and the model use the moving average (EMA), where there is one
AVERAGE, WEIGHTS, STATE = "average.safetensors", "weights.safetensors", "state.json"
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
PARTS = ("unet", "text_encoder", "vae")  # all that a picture is computed with
ADVICE = "put back the base model that 04_train was given"


class Weights:
    """The weights that a pipeline can load by name: `base`, `tuned`, or a checkpoint such as `step-000250`.

    All three parts are loaded each time, since a text encoder may have been trained with the UNet.
    """

    def __init__(
        self, run: Run, pipeline: StableDiffusionPipeline, base_model: str, base_hash: str
    ) -> None:
        """Take a pipeline with the tuned weights, and the fingerprint of the base model's UNet."""
        self.run, self.base_model, self.base_hash = run, base_model, base_hash
        self.model_hash, self.unet = folder_hash(run.model), pipeline.unet
        self.modules = {name: getattr(pipeline, name) for name in PARTS}
        self.tuned = {k: v.detach().cpu().clone() for k, v in _state_dict(self.modules).items()}
        self.loaded: tuple[str, float] | None = ("tuned", 1.0)  # name and strength

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base model's state dict. Raises RunError if the base model has changed since training."""
        unchecked = {"safety_checker": None, "requires_safety_checker": False}
        with open_model("base_model", self.base_model, ADVICE) as folder:
            # float32, as its fingerprint was taken
            pipeline = load_pipeline(str(folder), torch.float32, **unchecked)
        if fingerprint(pipeline.unet) != self.base_hash:
            raise RunError(
                f"base_model {self.base_model!r} has other weights now than this model was trained from, so "
                f"nothing can be compared with it: {ADVICE}"
            )
        modules = {name: getattr(pipeline, name) for name in PARTS}
        for module in modules.values():
            nn.Module.to(module, self.unet.dtype)  # diffusers' own to() logs a warning
        return _state_dict(modules)

    def steps(self) -> list[str]:
        """Return the names of the checkpoints on disk, oldest first."""
        names = (folder.name for folder in self.run.checkpoints.glob("step-*"))
        return sorted(name for name in names if STEP.fullmatch(name))

    def load(self, name: str, strength: float = 1.0) -> None:
        """Load the weights called `name` into the pipeline.

        strength  interpolates: 0 is the base, 1 the named weights; of a LoRA this is the scale
        Raises RunError if the checkpoint is missing or of another model.
        """
        if self.loaded == (name, strength):
            return
        if name == "base" or strength == 0:
            wanted = self.base
        else:
            wanted = self.tuned if name == "tuned" else self._read_checkpoint(name)
            if strength != 1:
                pairs = ((k, v.float(), wanted[k].float()) for k, v in self.base.items())
                wanted = {k: torch.lerp(base, own, strength) for k, base, own in pairs}
        self.loaded = None  # should loading fail half-way
        for part, module in self.modules.items():
            prefix = f"{part}."
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in wanted.items() if k.startswith(prefix)}
            )
        self.loaded = (name, strength)

    def _read_checkpoint(self, name: str) -> dict[str, Tensor]:
        """Return a checkpoint's full weights. A LoRA is added to the base model's weights at scale alpha / rank."""
        self.hash_of(name)  # checks its files
        folder = self.run.checkpoints / name
        has_average = AVERAGE in read_json(folder / MANIFEST)
        trained = load_file(folder / (AVERAGE if has_average else WEIGHTS))
        alpha = read_json(folder / STATE)["config"].get("lora_alpha")
        merged = {k: v.float() for k, v in self.base.items()}
        for key, tensor in trained.items():
            if key.endswith(LORA_DOWN):
                layer, rank = key.removesuffix(LORA_DOWN), len(tensor)
                change = trained[layer + LORA_UP].flatten(1) @ tensor.flatten(1)
                target = _find_name(merged, layer + ".weight")
                scale = (alpha or rank) / rank  # lora_alpha=0 means the rank
                merged[target] = merged[target] + scale * change.view_as(merged[target])
            elif not key.endswith(LORA_UP):
                merged[_find_name(merged, key)] = tensor
        dtype = self.unet.dtype
        return {k: v.to(dtype) for k, v in merged.items()}

    def hash_of(self, name: str) -> str:
        """Return the SHA-256 of a checkpoint's manifest, or of model/'s manifest for `tuned` and `base`.

        Raises RunError if the checkpoint is missing or corrupt.
        """
        if not STEP.fullmatch(name):
            return self.model_hash
        folder = self.run.checkpoints / name
        if what := find_corruption(folder):
            raise RunError(f"{what}: choose one of {', '.join([*self.steps(), 'tuned'])}")
        return folder_hash(folder)


def _state_dict(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for part, m in modules.items() for k, v in m.state_dict().items()}


def _find_name(state: dict[str, Tensor], name: str) -> str:
    """Return the key in a pipeline's state dict for the checkpoint's weight `name`.

    Checkpoints without a trained text encoder name the UNet's weights without `unet.`; older transformers put
    `text_model.` before the text encoder's. Raises RunError if no such weight exists.
    """
    for known in (
        name,
        f"unet.{name}",
        name.replace("text_encoder.text_model.", "text_encoder.", 1),
        name.replace("text_encoder.", "text_encoder.text_model.", 1),
    ):
        if known in state:
            return known
    raise RunError(
        f"{name} is no weight of this run's base model: the checkpoint belongs to another model, choose another one"
    )
