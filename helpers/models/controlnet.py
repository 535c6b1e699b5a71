"""A ControlNet, which holds a UNet to the lines of a sketch (Zhang et al. 2023, arXiv:2302.05543), loaded safely."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from helpers.core.errors import RunError
from helpers.models.pipeline import load_model
from helpers.models.untrusted import open_model, refuse_code, settings_in

ADVICE = "give one in diffusers layout: a hub id, or a folder with its config.json and safetensors weights"
# as the UNet's
SHAPES = ("cross_attention_dim", "block_out_channels", "layers_per_block", "addition_embed_type")


class ControlNet:
    """A ControlNet of a folder or the Hub. Its weights are downloaded and loaded when they are first used.

    Raises RunError if it is missing, or belongs to another family of models than the UNet.
    """

    def __init__(self, name: str, unet: UNet2DConditionModel) -> None:
        self.name, self.unet = name, unet
        with self._open(weights=False) as folder:
            config = settings_in(folder / "config.json")
            if (kind := config.get("_class_name")) != ControlNetModel.__name__:
                raise ValueError(f"its config.json is that of a {kind}, not of a ControlNetModel")
            with torch.device("meta"):
                empty = ControlNetModel.from_config(config)
        self.parameters = sum(p.numel() for p in empty.parameters())
        for key in SHAPES:
            own, wanted = (_comparable(model.config[key]) for model in (empty, unet))
            if own != wanted:
                raise RunError(
                    f"controlnet {name!r} has {key} {own} and this model {wanted}: it belongs to another kind of "
                    "model, choose one that was made for this base model"
                )

    def __str__(self) -> str:
        size = self.parameters * self.unet.dtype.itemsize / 1e9
        return f"the ControlNet {self.name} takes {size:.2g} GB of memory when it is first used"

    @contextmanager
    def _open(self, *, weights: bool) -> Iterator[Path]:
        with open_model("controlnet", self.name, ADVICE, weights=weights) as folder:
            refuse_code(folder)
            yield folder

    @cached_property
    def _loaded(self) -> tuple[ControlNetModel, str]:
        with self._open(weights=True) as folder:
            at = {"dtype": self.unet.dtype, "device": self.unet.device}
            model = load_model(ControlNetModel, folder.parent, folder.name, **at)
            digest = sha256()
            for path in sorted(folder.glob("*.safetensors")):
                with path.open("rb") as file:
                    while block := file.read(2**24):
                        digest.update(block)
        return model.to(self.unet.device).eval(), digest.hexdigest()

    @property
    def model(self) -> ControlNetModel:
        """The loaded ControlNet, with the UNet's dtype and device."""
        return self._loaded[0]

    @property
    def hash(self) -> str:
        """The SHA-256 of the ControlNet's weights."""
        return self._loaded[1]


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
