"""A speed LoRA, such as TCD's or LCM's: merged into any of the models, it lets them draw in a few steps."""

from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from helpers.config import InferenceConfig
from helpers.core.errors import RunError
from helpers.core.files import read_json, sha256
from helpers.core.run import Run
from helpers.models.families import State
from helpers.models.licence import public_name, stated_licence
from helpers.models.lora import LORA_FILE, Lora, find_misfit, read_foreign_lora
from helpers.models.untrusted import lora_file

ADVICE = "give a TCD or LCM LoRA made for this kind of model, such as h1t/TCD-SD15-LoRA for Stable Diffusion 1"


@dataclass(frozen=True)
class SpeedLora:
    """A speed LoRA that fits the model, and how it is drawn with.

    scheduler  TCD (Zheng et al. 2024, arXiv:2402.19159) or LCM (Luo et al. 2023, arXiv:2310.04378)
    weight     at which it is merged
    """

    name: str
    licence: str
    lora: Lora
    sha256: str
    scheduler: str
    weight: float
    steps: int
    guidance: float

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a request that is drawn fast."""
        return {
            "speed": self.weight,
            "scheduler": self.scheduler,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
        }

    def __str__(self) -> str:
        return f"{self.name} (licence: {self.licence}), {self.steps} steps by {self.scheduler}"


def load_speed_lora(
    config: InferenceConfig, pipeline: DiffusionPipeline, weights: State
) -> SpeedLora:
    """Load a config's speed LoRA. Raises RunError, in one line, if it is missing, pickled, or of another model."""
    name = config.speed_lora
    try:
        path = lora_file(name, LORA_FILE)
        lora = read_foreign_lora(path, pipeline)
        if lora.parts != {pipeline.unet_name}:
            raise ValueError(
                f"it changes {', '.join(sorted(lora.parts))}, and one that is merged here the UNet alone"
            )
        if misfit := find_misfit(lora, weights):
            raise ValueError(f"it is of another model: {misfit}")
    except Exception as error:  # diffusers' converters raise many kinds
        what = str(error).strip().split("\n")[0] or type(error).__name__
        raise RunError(f"speed_lora {name!r} is not taken ({what}): {ADVICE}") from error
    licence, scheduler = stated_licence(name), config.speed_scheduler
    if scheduler == "auto":
        scheduler = "LCM" if "lcm" in f"{name}/{path.name}".lower() else "TCD"
    return SpeedLora(
        public_name(name),
        licence.name if licence else "not stated",
        lora,
        sha256(path),
        scheduler,
        config.speed_weight,
        config.speed_steps,
        config.speed_guidance,
    )


def speed_cost(run: Run, speed: SpeedLora) -> str:
    """Return in a line what drawing with this speed LoRA costs, as the run's report measured it."""
    if run.report_json.is_file():
        found = read_json(run.report_json).get("speed", {})
        same = all(found.get(n) == v for n, v in vars(speed).items() if n != "lora")
        if same and "value" in found["style_gain"] and "value" in found["full_style_gain"]:
            return speed_words(found)
    return "What it costs in style gain stands here once the report was made with it."


def speed_words(found: dict[str, Any]) -> str:
    """Return in words what a judged speed LoRA costs, from report.json."""
    gain, full = (found[name]["value"] for name in ("style_gain", "full_style_gain"))
    return (
        f"Style gain {gain:.2f} in {found['steps']} steps by {found['scheduler']}, {full:.2f} in {found['full_steps']} "
        f"steps without it; a picture takes {found['time']:.0%} of the time."
    )
