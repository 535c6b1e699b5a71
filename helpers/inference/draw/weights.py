"""Load named weights (base model, tuned model or a checkpoint) into one pipeline."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from helpers.core.errors import RunError
from helpers.core.files import MANIFEST, find_corruption, folder_hash, read_json
from helpers.core.run import Run
from helpers.inference.trained import read_trained
from helpers.models.families import Components, family_of, read_settings
from helpers.models.lora import DOWN, LORA_FILE, UP, Lora, lora_change, lora_weights, read_lora
from helpers.models.pipeline import load_mapped
from helpers.models.readback import fingerprint, fingerprint_of_files
from helpers.models.untrusted import load_file, open_model

STEP = re.compile(r"step-\d{6,}")
# of a checkpoint; previews and the model use the moving average (EMA), where there is one
AVERAGE, WEIGHTS, STATE = "average.safetensors", "weights.safetensors", "state.json"
LIGHT = "light"  # the light LoRA, on the base
LORA_DOWN, LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
ADVICE = "put back the base model that 04_train was given"
Read = Callable[[str], Tensor]  # a weight by its name


class Weights:
    """The weights that a pipeline can load by name: `base`, `tuned`, a checkpoint such as `step-000250`, or `light`.

    Only what training has changed is loaded: of a LoRA the layers that it adapts, else the trained models. The base and
    the tuned model are mapped from their files, so that they take no main memory beside the pipeline.
    """

    def __init__(
        self, run: Run, pipeline: DiffusionPipeline, base_model: str, base_hash: str
    ) -> None:
        self.run, self.base_model, self.base_hash = run, base_model, base_hash  # of its UNet
        self.family, self.model_hash = family_of(read_settings(run.model)), folder_hash(run.model)
        self.modules = Components.of(self.family, pipeline).modules
        self.trained_text = read_trained(run).settings.get("train_text_encoder", False)
        self.all = _state_dict({part: self.modules[part] for part in self._trained()})
        self.own = self._changed_weights()
        self._light: Lora | None = None
        self._speed: Lora | None = None
        self.loaded: tuple[str, float, float] | None = ("tuned", 1.0, 0.0)  # as `load` was given
        self.verified: dict[str, list] = {}  # checkpoints' files, as they were when they were read

    def use_speed(self, lora: Lora) -> None:
        """Take a speed LoRA, which `load` merges into any weights. It must fit (`find_misfit`)."""
        self._speed, self.loaded = lora, None
        self.own |= {name: self.all[name] for name in lora_weights(lora, self.all)}

    def use_light(self, lora: Lora) -> None:
        """Take the light LoRA of this training, which the name `light` draws by on the base."""
        self._light, self.loaded = lora, None

    def _changed_weights(self) -> dict[str, Tensor]:
        if self._lora is None:
            return dict(self.all)
        return {name: self.all[name] for name in lora_weights(self._lora, self.all)}

    def _trained(self) -> dict[str, type[nn.Module]]:
        """Return the class of each model that training may have changed, by component."""
        name, kind = self.family.DENOISER
        return {name: kind} | (self.family.TEXT_ENCODERS if self.trained_text else {})

    @cached_property
    def tuned(self) -> dict[str, Tensor]:
        """The tuned model's weights."""
        parts = self._trained().items()
        return _state_dict({part: load_mapped(kind, self.run.model, part) for part, kind in parts})

    @cached_property
    def base(self) -> dict[str, Tensor]:
        """The base model's weights. Raises RunError if the base model has changed since training."""
        with open_model("base_model", self.base_model, ADVICE) as folder:
            parts = self._trained().items()
            modules = {part: load_mapped(kind, folder, part) for part, kind in parts}
            denoiser, part = modules[self.family.DENOISER[0]], folder / self.family.DENOISER[0]
            is_float32 = denoiser.dtype == torch.float32  # as its fingerprint was taken
            found = fingerprint(denoiser) if is_float32 else fingerprint_of_files(denoiser, part)
        if found != self.base_hash:
            raise RunError(
                f"base_model {self.base_model!r} has other weights now than this model was trained from, so "
                f"nothing can be compared with it: {ADVICE}"
            )
        return _state_dict(modules)

    def steps(self) -> list[str]:
        """Return the names of the checkpoints on disk, oldest first."""
        names = (folder.name for folder in self.run.checkpoints.glob("step-*"))
        return sorted(name for name in names if STEP.fullmatch(name))

    @torch.no_grad()
    def load(self, name: str, strength: float = 1.0, speed: float = 0.0) -> None:
        """Load the weights called `name` into the pipeline.

        strength  interpolates: 0 is the base, 1 the named weights; of a LoRA this is the scale
        speed     at which the speed LoRA is merged into them; 0 is without
        Raises RunError if the checkpoint is missing or of another model.
        """
        if self.loaded == (name, strength, speed):
            return
        if name == "base" or strength == 0:
            read = self.base.__getitem__
        elif name == LIGHT:
            if self._light is None:
                raise RunError("no light LoRA is made: set lora_rank or lora_share in more")
            read = _with_lora(self.base.__getitem__, self._light, self.all, 1.0)
        else:
            read = self.tuned.__getitem__ if name == "tuned" else self._read_checkpoint(name)
        base = self.base if strength not in (0, 1) else None
        if base is not None:
            read = _between(base, read, strength)
        if speed:
            read = _with_lora(read, self._speed, self.all, speed)
        self.loaded = None  # should loading fail half-way
        for key, weight in self.own.items():
            weight.copy_(read(key))
        self.loaded = (name, strength, speed)

    def change(self, name: str) -> Tensor:
        """Return in float32 by how much training has changed a weight."""
        if self._lora is None:
            return self.tuned[name].float() - self.base[name].float()
        layer = self._layers.get(name)
        return lora_change(self._lora, layer) if layer else torch.zeros(self.base[name].shape)

    @cached_property
    def _layers(self) -> dict[str, str]:
        return lora_weights(self._lora, self.base)

    @cached_property
    def _lora(self) -> Lora | None:
        path = self.run.model / "lora" / LORA_FILE
        return read_lora(path) if path.is_file() else None

    def _read_checkpoint(self, name: str) -> Read:
        """Return the function that gives a weight of a checkpoint by its name, merged with the base's."""
        self.hash_of(name)  # checks its files
        folder = self.run.checkpoints / name
        has_average = AVERAGE in read_json(folder / MANIFEST)
        trained = load_file(folder / (AVERAGE if has_average else WEIGHTS))
        alpha = read_json(folder / STATE)["config"].get("lora_alpha")
        weights: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}  # of a LoRA, and alpha by layer
        alphas: dict[str, float] = {}
        for key, tensor in trained.items():
            if key.endswith(LORA_DOWN):
                layer = key.removesuffix(LORA_DOWN)
                up = trained[layer + LORA_UP]
                target = _find_name(self.base, layer + ".weight")
                _require_shape(target, (len(up), *tensor.shape[1:]), self.base)
                full = target.removesuffix(".weight")
                tensors |= {full + DOWN: tensor, full + UP: up}
                alphas[full] = alpha or len(tensor)  # lora_alpha=0 means the rank
            elif not key.endswith(LORA_UP):
                weights[target := _find_name(self.base, key)] = tensor
                _require_shape(target, tensor.shape, self.base)
        lora = Lora(tensors, alphas, {})
        # an earlier training's may have changed other layers
        self.own |= {key: self.all[key] for key in [*weights, *lora_weights(lora, self.all)]}
        return _with_lora((self.base | weights).__getitem__, lora, self.base, 1.0)

    def hash_of(self, name: str) -> str:
        """Return the SHA-256 of the manifest of a checkpoint, or of model/ if the name is `tuned` or `base`.

        Raises RunError if the checkpoint is missing or corrupt.
        """
        if name in ("base", "tuned", LIGHT):
            return self.model_hash
        if not STEP.fullmatch(name):
            raise RunError(
                f"there is no model {name!r}: choose one of {', '.join([*self.steps(), 'tuned'])}"
            )
        folder = self.run.checkpoints / name
        files = [(path, path.stat()) for path in sorted(folder.rglob("*"))]
        seen = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
        # reading gigabytes at every picture would take longer than to draw it
        if seen != self.verified.get(name):
            if what := find_corruption(folder):
                raise RunError(f"{what}: choose one of {', '.join([*self.steps(), 'tuned'])}")
            self.verified[name] = seen
        return folder_hash(folder)


def _between(base: dict[str, Tensor], read: Read, strength: float) -> Read:
    return lambda name: torch.lerp(base[name].float(), read(name).float(), strength)


def _with_lora(read: Read, lora: Lora, weights: dict[str, Tensor], scale: float) -> Read:
    layers = lora_weights(lora, weights)

    def merged(name: str) -> Tensor:
        own = read(name)
        if name not in layers:
            return own
        return own.float() + scale * lora_change(lora, layers[name]).view_as(own)

    return merged


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


def _require_shape(name: str, shape: Sequence[int], base: dict[str, Tensor]) -> None:
    if tuple(shape) != tuple(base[name].shape):
        raise RunError(
            f"{name} has another shape in this run's base model: the checkpoint belongs to another model, choose "
            "another one"
        )
