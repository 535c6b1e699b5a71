"""The families of base models, a module each. Nothing else in the project knows a family by name.

A family is a module of this package that defines what `Family` lists. The settings files of a base model tell its
family, so a new family is one new file.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from helpers.core.files import read_json
from helpers.models.objective import Objective

# a denoiser's inputs beside latents and timesteps, by name, batch first
Conditioning = dict[str, Tensor]
State = dict[str, Tensor]  # weights by name
# a base model's JSON settings: model_index, and each component's
Settings = Mapping[str, dict[str, Any]]
Size = tuple[int, int]  # height and width, or top and left, in pixels
SETTINGS_FILES = {"scheduler": "scheduler_config.json"}  # of the other components: config.json


class Family(Protocol):
    """The contract of a family module."""

    NAME: str  # for people
    PIPELINE: type  # of diffusers
    IMAGE_TO_IMAGE: type  # of diffusers, as the next two: draws from a picture
    INPAINTING: type  # draws a part of a picture anew
    CONTROLNET: type  # draws by the lines of a sketch
    PIPELINE_OPTIONS: dict[str, Any]
    TEXT_SETTINGS: tuple[str, ...]  # of model_index.json, that change how texts are encoded
    NO_SAFETY_CHECKER: dict[str, Any]  # options that leave out a safety checker
    SCHEDULER: type  # the noise schedule of training
    SAMPLER: type  # draws in few steps
    DENOISER: tuple[str, type[nn.Module]]  # the component that is trained, and its class
    TEXT_ENCODERS: dict[str, type[nn.Module]]  # by component
    TOKENIZERS: tuple[str, ...]  # components, one for each text encoder
    VARIANT: str  # of the weights, downloaded from the Hub where it exists; "" is the usual ones
    TEXT_EMBEDDINGS: tuple[str, ...]  # names in the conditioning of what encode_text returns
    # the pipeline's arguments for what its encode_prompt returns
    PROMPT_EMBEDDINGS: tuple[str, ...]
    LORA_TARGETS: dict[str, list[str]]  # layers of the denoiser, by the setting lora_targets
    TEXT_TARGETS: list[str]  # layers of the text encoders
    DEFAULT_RESOLUTION: int  # of a square, in pixels
    # cond_stage_config of the original .yaml; None where loaders want none
    ORIGINAL_TEXT: dict[str, Any] | None
    LICENCE: str  # a licence id of the Hub, for a base without a card

    def recognises(self, settings: Settings) -> bool:
        """Return True if a base model's settings are of this family."""
        ...

    def check(self, settings: Settings) -> None:
        """Raise ValueError if components do not fit one another, or need inputs that a prompt cannot give."""
        ...

    def vae_dtype(self, vae: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
        """Return the dtype that a VAE of these settings needs where the device computes in `dtype`."""
        ...

    def tokenize(self, tokenizers: Sequence[Any], texts: Sequence[str]) -> Conditioning:
        """Return the token ids of texts, each (N, T), as `input_ids` and, for further tokenizers, `input_ids_2`."""
        ...

    def encode_text(
        self, encoders: Sequence[nn.Module], ids: Conditioning, index: dict[str, Any]
    ) -> Conditioning:
        """Return the text embeddings of token ids; `index` is model_index.json."""
        ...

    def size_conditioning(self, original: Size, crop: Size, target: Size) -> Conditioning:
        """Return what tells the denoiser an image's original size, top-left corner and size (1, ...); {} if nothing."""
        ...

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the denoiser's output (B, C, h, w) for noisy latents (B, C, h, w) and timesteps (B,)."""
        ...

    def example_conditioning(self, denoiser: nn.Module, batch: int) -> Conditioning:
        """Return random text embeddings and sizes in the shapes that the denoiser takes, to count and to time it."""
        ...

    def encode_image(self, vae: nn.Module, pixels: Tensor) -> Tensor:
        """Return scaled latents (N, C, h, w) of pixels (N, 3, height, width) in -1..1, without sampling."""
        ...

    def objective(self, noise_scheduler: Any) -> Objective:
        """Return what the denoiser is trained to predict."""
        ...

    def architecture(self, schedule: dict[str, Any]) -> tuple[str, str]:
        """Return the names of modelspec and of sd-scripts for a model with these settings of its scheduler."""
        ...

    def to_original(self, states: Mapping[str, State], settings: Settings) -> State:
        """Return each component's weights by the names of the family's original one-file checkpoints."""
        ...

    def to_kohya(self, layer: str, settings: Settings) -> tuple[str, ...]:
        """Return sd-scripts' names for a LoRA's layer, such as `unet.mid_block.attentions.0.proj_in`.

        The first is the one that sd-scripts writes; programs read the others as well.
        """
        ...


@dataclass(frozen=True)
class Components:
    """The components of a base model."""

    family: Family
    index: dict[str, Any]  # model_index.json
    tokenizers: dict[str, Any]
    text_encoders: dict[str, nn.Module]
    vae: nn.Module
    denoiser: nn.Module
    noise_scheduler: Any

    @classmethod
    def of(cls, family: Family, pipeline: Any) -> "Components":
        """Take the components of a pipeline."""
        return Components(
            family,
            dict(pipeline.config),
            {name: getattr(pipeline, name) for name in family.TOKENIZERS},
            {name: getattr(pipeline, name) for name in family.TEXT_ENCODERS},
            pipeline.vae,
            getattr(pipeline, family.DENOISER[0]),
            pipeline.scheduler,
        )

    @property
    def tokenizer(self) -> Any:
        """The first tokenizer, by which captions are counted and cut; all of a family count alike."""
        return next(iter(self.tokenizers.values()))

    @property
    def objective(self) -> Objective:
        """What the denoiser is trained to predict."""
        return self.family.objective(self.noise_scheduler)

    @property
    def text_settings(self) -> dict[str, Any]:
        """The settings of model_index.json that change how texts are encoded."""
        return {k: v for k, v in self.index.items() if k in self.family.TEXT_SETTINGS}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The models by component, in the order denoiser, VAE, text encoders."""
        return {self.family.DENOISER[0]: self.denoiser, "vae": self.vae} | self.text_encoders


def weights_file(component: str) -> str:
    """Return the name of a component's weight file: transformers' for text encoders, else diffusers'."""
    is_text = component.startswith("text_encoder")
    return "model.safetensors" if is_text else "diffusion_pytorch_model.safetensors"


def all_families() -> list[Family]:
    """Return the family modules of this package, in order of name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def read_settings(folder: Path) -> Settings:
    """Return the JSON settings of a folder in diffusers layout, by component; those that are missing are left out."""
    index = read_json(folder / "model_index.json")
    files = {name: SETTINGS_FILES.get(name, "config.json") for name in index}
    found = {name: folder / name / file for name, file in files.items()}
    return {"model_index": index} | {n: read_json(p) for n, p in found.items() if p.is_file()}


def text_config(settings: Settings, component: str = "text_encoder") -> dict[str, Any]:
    """Return the settings of a CLIP text encoder, which may lie within those of a whole CLIP."""
    return settings[component].get("text_config", settings[component])


def needed_components(index: dict[str, Any]) -> list[str]:
    """Return the components that a model_index.json must name. Raises ValueError for a pipeline of no family."""
    kind = index.get("_class_name")
    for family in all_families():
        if family.PIPELINE.__name__ == kind:
            first = [family.DENOISER[0], "vae", *family.TEXT_ENCODERS]
            return [*first, *family.TOKENIZERS, "scheduler"]
    known = ", ".join(family.NAME for family in all_families())
    raise ValueError(f"it is a {kind}, and what can be trained is: {known}")


def family_of(settings: Settings) -> Family:
    """Return the family of a base model by its settings. Raises ValueError if none recognises them."""
    needed_components(settings["model_index"])
    for family in all_families():
        if family.recognises(settings):
            return family
    raise ValueError("its settings are those of no model that is known here")
