"""Load named weights (base model, tuned model or a checkpoint) into one pipeline."""

import re
from functools import cached_property

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, folder_hash, read_json
from helpers.core.run import Run
from helpers.models.families import Components, family_of, read_settings
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import fingerprint
from helpers.models.untrusted import load_file, open_model

STEP = re.compile(r"step-\d{6,}")
# of a checkpoint; previews and the model use the moving average (EMA), where there is one
AVERAGE, WEIGHTS, STATE = "average.safetensors", "weights.safetensors", "state.json"
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
ADVICE = "put back the base model that 04_train was given"


class Weights:
    """The weights that a pipeline can load by name: `base`, `tuned`, or a checkpoint such as `step-000250`.

    All models are loaded each time, since text encoders may have been trained with the UNet.
    """

    def __init__(
        self, run: Run, pipeline: DiffusionPipeline, base_model: str, base_hash: str
    ) -> None:
        self.run, self.base_model, self.base_hash = run, base_model, base_hash  # of its UNet
        self.family, self.model_hash = family_of(read_settings(run.model)), folder_hash(run.model)
        self.modules = Components.of(self.family, pipeline).modules
        self.dtype = pipeline.unet.dtype
        self.tuned = {k: v.detach().cpu().clone() for k, v in _state_dict(self.modules).items()}
        self.loaded: tuple[str, float] | None = ("tuned", 1.0)  # name and strength
        self.verified: dict[str, list] = {}  # checkpoints' files, as they were when they were read

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base model's state dict. Raises RunError if the base model has changed since training."""
        with open_model("base_model", self.base_model, ADVICE) as folder:
            # float32, as its fingerprint was taken
            pipeline = load_pipeline(str(folder), torch.float32, safety_checker=False)
        modules = Components.of(self.family, pipeline).modules
        if fingerprint(modules[self.family.DENOISER[0]]) != self.base_hash:
            raise RunError(
                f"base_model {self.base_model!r} has other weights now than this model was trained from, so "
                f"nothing can be compared with it: {ADVICE}"
            )
        for module in modules.values():
            nn.Module.to(module, self.dtype)  # diffusers' own to() logs a warning
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
        return {k: v.to(self.dtype) for k, v in merged.items()}

    def hash_of(self, name: str) -> str:
        """Return the SHA-256 of the manifest of a checkpoint, or of model/ if the name is `tuned` or `base`.

        Raises RunError if the checkpoint is missing or corrupt.
        """
        if not STEP.fullmatch(name):
            return self.model_hash
        folder = self.run.checkpoints / name
        files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
        seen = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
        if seen != self.verified.get(
            name
        ):  # reading gigabytes at every picture would take longer than to draw it
            if what := find_corruption(folder):
                raise RunError(f"{what}: choose one of {', '.join([*self.steps(), 'tuned'])}")
            self.verified[name] = seen
        return folder_hash(folder)


def _state_dict(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for part, m in modules.items() for k, v in m.state_dict().items()}


def _find_name(state: dict[str, Tensor], name: str) -> str:
    for known in (
        name,
        f"unet.{name}",  # checkpoints without a trained text encoder leave out `unet.`
        # older transformers put `text_model.` before a text encoder's
        re.sub(r"^(text_encoder(_2)?)\.text_model\.", r"\1.", name),
        re.sub(r"^(text_encoder(_2)?)\.", r"\1.text_model.", name),
    ):
        if known in state:
            return known
    raise RunError(
        f"{name} is no weight of this run's base model: the checkpoint belongs to another model, choose another one"
    )
