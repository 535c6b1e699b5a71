"""The settings of a picture to draw, given by a caller or read from a saved picture."""

from dataclasses import dataclass, fields
from typing import Any

from helpers.config import InferenceConfig
from helpers.inference.draw.fit_picture import STEP_PX
from helpers.inference.draw.from_picture import FromPicture

MAX_STEPS = 1000  # the timesteps of Stable Diffusion's training
# not saved where they say nothing; pictures of before there was one lack them too
OPTIONAL = {"speed": 0.0, "from_picture": None}


@dataclass(frozen=True)
class Request:
    """The settings of a picture to draw. The same request, weights and machine give the same picture."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 16
    guidance_scale: float = 4.0
    model: str = "tuned"  # base, tuned, or a checkpoint such as step-000250
    scheduler: str = "DPM-Solver++"
    width_px: int = 0  # 0 is the resolution of training
    height_px: int = 0
    strength: float = 1.0  # from the base's weights (0) to the model's (1)
    speed: float = 0.0  # at which the speed LoRA is merged
    from_picture: FromPicture | None = None

    @classmethod
    def of(cls, config: InferenceConfig, prompt: str, seed: int, negative: str = "") -> "Request":
        """Create a request with the steps and the guidance scale of a config."""
        return cls(prompt, seed, negative, config.num_inference_steps, config.guidance_scale)

    @classmethod
    def read(cls, settings: Any) -> "Request":
        """Create the request of a saved picture's settings. Raises ValueError if they cannot be drawn.

        RunError is raised for a denoising strength or a scale out of bounds.
        """
        values = OPTIONAL | _by_name(settings)
        if start := values["from_picture"]:
            values["from_picture"] = FromPicture(**_values(FromPicture, _by_name(start)))
        request = cls(**_values(cls, values))
        for side in (request.width_px, request.height_px):
            if side <= 0 or side % STEP_PX:
                raise ValueError(f"a side of {side} px is no multiple of {STEP_PX}")
        if not 1 <= request.num_inference_steps <= MAX_STEPS:
            raise ValueError(f"num_inference_steps is {request.num_inference_steps}")
        if abs(request.seed) >= 2**63:  # torch's limit
            raise ValueError(f"seed is {request.seed}")
        return request


def _by_name(saved: Any) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise ValueError("they are not given by name")
    return saved


def _values(kind: type, saved: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass's fields. Raises ValueError for one that is missing or of another type."""
    for f in fields(kind):
        if f.name not in saved:
            raise ValueError(f"{f.name} is missing")
        if not isinstance(saved[f.name], int | float if f.type is float else f.type):
            raise ValueError(f"{f.name} is {saved[f.name]!r}")
    return {f.name: saved[f.name] for f in fields(kind)}
