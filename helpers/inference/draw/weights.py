"""One pipeline in memory that holds the base's weights, the tuned ones, a checkpoint's, or any point on the way."""

import re
from functools import cached_property

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, folder_hash, read_json
from helpers.core.run import Run
from helpers.models.pipeline import load_pipeline
from helpers.models.readback import fingerprint
from helpers.models.untrusted import load_file, open_model, refuse_code

STEP = re.compile(r"step-\d{6,}")
# of a checkpoint; the average is what previews and the model are drawn with, where there is one
AVERAGE, WEIGHTS, STATE = "average.safetensors", "weights.safetensors", "state.json"
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
PARTS = ("unet", "text_encoder", "vae")  # all that a picture is computed with
ADVICE = "put back the base model that 04_train was given"


class Weights:
    """Puts weights into a pipeline by name: `base`, `tuned`, or a checkpoint such as `step-000250`.

    The base's are those of all its parts: a text encoder that was trained goes out with the UNet.

    strength  how far from the base (0) to the named weights (1); for a LoRA, which adds a product to the
              base's weights, this is the LoRA's scale
    Sets that were read stay in the computer's memory, so that changing to and fro reads no file.
    """

    def __init__(
        self, run: Run, pipeline: StableDiffusionPipeline, base_model: str, base_hash: str
    ) -> None:
        """`pipeline` has the tuned weights; `base_hash` is the fingerprint of the base's UNet."""
        self.run, self.base_model, self.base_hash = run, base_model, base_hash
        self.model_hash = folder_hash(run.model)
        self.unet = pipeline.unet
        self.modules = {name: getattr(pipeline, name) for name in PARTS}
        self.tuned = {k: v.detach().cpu().clone() for k, v in _state(self.modules).items()}
        self.now: tuple[str, float] | None = ("tuned", 1.0)

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base's weights. Raises RunError where they are not those that training began with."""
        with open_model("base_model", self.base_model, ADVICE) as folder:
            refuse_code(folder)
            unet = UNet2DConditionModel.from_pretrained(  # in the precision of its fingerprint
                folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True
            )
            if fingerprint(unet) != self.base_hash:
                raise RunError(
                    f"base_model {self.base_model!r} has other weights now than this model was trained from, so "
                    f"nothing can be compared with it: {ADVICE}"
                )
            pipeline = load_pipeline(
                str(folder),
                self.unet.dtype,
                unet=nn.Module.to(unet, self.unet.dtype),  # its own to() warns, of nothing
                safety_checker=None,
                requires_safety_checker=False,
            )
        return _state({name: getattr(pipeline, name) for name in PARTS})

    def steps(self) -> list[str]:
        """The checkpoints that were kept, oldest first."""
        names = (folder.name for folder in self.run.checkpoints.glob("step-*"))
        return sorted(name for name in names if STEP.fullmatch(name))

    def put(self, name: str, strength: float = 1.0) -> None:
        """Have the pipeline hold the named weights at a strength.

        Raises RunError for a checkpoint that is not there.
        """
        if self.now == (name, strength):
            return
        if name == "base" or strength == 0:
            wanted = self.base
        elif strength == 1:
            wanted = self._named(name)
        else:
            there = self._named(name)
            wanted = {
                k: torch.lerp(v.float(), there[k].float(), strength) for k, v in self.base.items()
            }
        self.now = None  # while it holds neither
        for part, module in self.modules.items():
            of_part = {k.removeprefix(f"{part}."): v for k, v in wanted.items() if _is_of(part, k)}
            module.load_state_dict(of_part)
        self.now = (name, strength)

    def _named(self, name: str) -> dict[str, Tensor]:
        return self.tuned if name == "tuned" else self._checkpoint(name)

    def _checkpoint(self, name: str) -> dict[str, Tensor]:
        """What a checkpoint trained, in place of the base's or, for a LoRA, added to it at alpha / rank."""
        self.hash_of(name)
        folder = self.run.checkpoints / name
        trained = load_file(
            folder / (AVERAGE if AVERAGE in read_json(folder / MANIFEST) else WEIGHTS)
        )
        alpha = read_json(folder / STATE)["config"].get("lora_alpha")
        merged = {k: v.float() for k, v in self.base.items()}
        for key, tensor in trained.items():
            if key.endswith(LORA_DOWN):
                layer, rank = key.removesuffix(LORA_DOWN), len(tensor)
                change = trained[layer + LORA_UP].flatten(1) @ tensor.flatten(1)
                target = _name_in(merged, layer + ".weight")
                scale = (alpha or rank) / rank  # 0 is the rank
                merged[target] = merged[target] + scale * change.view_as(merged[target])
            elif not key.endswith(LORA_UP):
                merged[_name_in(merged, key)] = tensor
        dtype = self.unet.dtype
        return {k: v.to(dtype) for k, v in merged.items()}

    def hash_of(self, name: str) -> str:
        """The SHA-256 that stands for the named weights; the base's goes with the tuned one's."""
        if not STEP.fullmatch(name):
            return self.model_hash
        folder = self.run.checkpoints / name
        if what := find_corruption(folder):
            raise RunError(f"{what}: choose one of {', '.join([*self.steps(), 'tuned'])}")
        return folder_hash(folder)


def _state(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{part}.{k}": v for part, m in modules.items() for k, v in m.state_dict().items()}


def _is_of(part: str, name: str) -> bool:
    return name.startswith(f"{part}.")


def _name_in(state: dict[str, Tensor], name: str) -> str:
    """A trained weight's name among a pipeline's.

    The UNet's stand alone where the text encoder was not trained, whose names older transformers begin
    with `text_model.`. Raises RunError for a name of another model.
    """
    for known in (
        name,
        f"unet.{name}",
        name.replace("text_encoder.text_model.", "text_encoder.", 1),
        name.replace("text_encoder.", "text_encoder.text_model.", 1),
    ):
        if known in state:
            return known
    raise RunError(f"{name} is no weight of this run's base model: its checkpoint is of another")
