"""Drawing with a run's model, and with the base model beside it."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from helpers.config import InferenceConfig
from helpers.device import Device, load_pipeline, pick_device, sample_fast
from helpers.errors import RunError
from helpers.records import read_metadata
from helpers.run import Run
from helpers.store import damage, folder_hash, read_json, replacing_file, write_json

Progress = Callable[[int, int], None]  # steps done, steps in all


@dataclass(frozen=True)
class Request:
    """A picture that is asked for: these settings and these weights give the same one again."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    model: str = "tuned"  # or base


class Studio:
    """A run's model, loaded once; the base model joins it when it is first asked for.

    Raises RunError if 04 has not ended or model/ is damaged.
    """

    def __init__(self, run: Run) -> None:
        run.require(run.verdict, "train")
        if what := damage(run.model):
            raise RunError(f"{what}: run 04_train again")
        self.run = run
        trained = run.read_config("train")
        self.base_model, self.resolution_px = trained["base_model"], trained["resolution_px"]
        self.suffix = run.read_config("dataset")["suffix"]
        self.device: Device = pick_device()
        self.model_hash = folder_hash(run.model)

    @cached_property
    def tuned(self) -> StableDiffusionPipeline:
        return self._load(str(self.run.model))

    @cached_property
    def base(self) -> StableDiffusionPipeline:
        return self._load(self.base_model)

    def _load(self, model: str) -> StableDiffusionPipeline:
        return sample_fast(load_pipeline(model, self.device.dtype).to(self.device.device))

    def styled(self, prompt: str) -> str:
        """The prompt with the suffix at its end, once."""
        return prompt if prompt.endswith(self.suffix) else prompt + self.suffix

    def draw(
        self, requests: Sequence[Request], batch_size: int = 8, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Draw requests that differ in prompt, seed and negative prompt alone.

        Each picture has noise of its own from its seed, so it does not depend on its neighbours.
        """
        first = requests[0]
        pipeline = self.base if first.model == "base" else self.tuned
        images: list[Image.Image] = []
        for start in range(0, len(requests), batch_size):
            some = requests[start : start + batch_size]
            output = pipeline(
                prompt=[request.prompt for request in some],
                negative_prompt=[request.negative_prompt for request in some],
                height=self.resolution_px,
                width=self.resolution_px,
                num_inference_steps=first.num_inference_steps,
                guidance_scale=first.guidance_scale,
                generator=[torch.Generator().manual_seed(request.seed) for request in some],
                callback_on_step_end=_reporter(
                    progress, start, len(requests), first.num_inference_steps, len(some)
                ),
            )
            images += output.images
        return images

    def save(self, request: Request, image: Image.Image) -> Path:
        """Keep a picture in samples/ with its settings beside it."""
        path = self.path(request)
        with replacing_file(path) as beside:
            image.save(beside)
        write_json(path.with_suffix(".json"), self._settings(request))
        return path

    def path(self, request: Request) -> Path:
        words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower().removesuffix(self.suffix)).strip(
            "-"
        )[:60]
        styled = "" if request.prompt.endswith(self.suffix) else "-plain"
        return self.run.samples / f"{words}{styled}-{request.model}-{request.seed}.png"

    def _settings(self, request: Request) -> dict[str, object]:
        return asdict(request) | {"model_hash": self.model_hash, "size_px": self.resolution_px}

    def is_kept(self, request: Request) -> bool:
        """Whether samples/ has this very picture, drawn by these weights."""
        path = self.path(request)
        beside = path.with_suffix(".json")
        return path.is_file() and beside.is_file() and read_json(beside) == self._settings(request)


def _reporter(
    progress: Progress | None, start: int, count: int, steps: int, batch: int
) -> Callable | None:
    if progress is None:
        return None

    def report(_pipeline: object, step: int, _timestep: object, values: dict) -> dict:
        progress(start * steps + (step + 1) * batch, count * steps)
        return values

    return report


def requests_of(config: InferenceConfig, studio: Studio) -> list[Request]:
    """What a config asks for: each of its prompts, or of the previews', `num_images` times."""
    trained = studio.run.read_config("train")
    prompts = [line.strip() for line in config.prompts.splitlines() if line.strip()] or list(
        trained["prompts"]
    )
    if not prompts:
        prompts = held_out_captions(studio)[:4]
    return [
        Request(
            studio.styled(prompt) if config.add_suffix else prompt,
            config.seed + i * config.num_images + k,
            config.negative_prompt,
            config.num_inference_steps,
            config.guidance_scale,
        )
        for i, prompt in enumerate(prompts)
        for k in range(config.num_images)
    ]


def held_out_captions(studio: Studio) -> list[str]:
    """The captions of the validation images, without the suffix."""
    rows = read_metadata(studio.run.require(studio.run.split_metadata("validation"), "dataset"))
    return [text.removesuffix(studio.suffix) for _, text in rows]


def draw_missing(studio: Studio, requests: Sequence[Request], batch_size: int) -> Iterator[Path]:
    """Draw and keep what samples/ lacks, yielding each picture's path."""
    for start in range(0, len(requests), batch_size):
        some = requests[start : start + batch_size]
        wanted = [request for request in some if not studio.is_kept(request)]
        if wanted:
            for request, image in zip(wanted, studio.draw(wanted, batch_size), strict=True):
                studio.save(request, image)
        yield from (studio.path(request) for request in some)
