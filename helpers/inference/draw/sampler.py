"""Drawing with a run's model, and with the base model beside it."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from helpers.config import InferenceConfig, configure
from helpers.core.errors import RunError
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.figures.pictures import INK
from helpers.host.device import Device, pick_device
from helpers.inference.draw.album import Album
from helpers.inference.draw.prompts import Prompts
from helpers.inference.draw.schedulers import SCHEDULERS, make_scheduler
from helpers.inference.draw.weights import Weights
from helpers.inference.trained import read_trained
from helpers.models.capture import CapturedForward
from helpers.models.pipeline import load_pipeline, sample_fast

Progress = Callable[[int, int], None]  # steps done, steps in all
log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Raised out of a drawing by the one who watches it."""


@dataclass(frozen=True)
class Request:
    """A picture that is asked for: these settings and these weights give the same one again."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    num_inference_steps: int = 16
    guidance_scale: float = 4.0
    model: str = "tuned"  # base, tuned, or a checkpoint such as step-000250
    scheduler: str = "DPM-Solver++"
    width_px: int = 0  # 0 is what the model was trained at
    height_px: int = 0
    strength: float = 1.0  # from the base's weights (0) to the model's (1)


class Studio:
    """A run's model, loaded once; the base's weights and the checkpoints' change places with its own.

    Pictures that the model's safety checker blocks come back as a grey label with `info["blocked"]` set.
    Raises RunError if 04 has not ended or model/ is damaged.
    """

    def __init__(self, run: Run, *, safety_checker: bool = True) -> None:
        run.require(run.verdict, "train")
        if what := find_corruption(run.model):
            raise RunError(f"{what}: run 04_train again")
        self.run = run
        self.trained = read_trained(run)
        settings = self.trained.settings
        self.method, self.resolution_px = settings["method"], settings["resolution_px"]
        self.suffix = self.trained.suffix
        self.device: Device = pick_device(
            attention=settings["attention"], capture=settings.get("capture", "auto")
        )
        self.pipeline = self._load(str(run.model), safety_checker)
        self.prompts = Prompts.of(self.pipeline, self.suffix)
        self.forward = CapturedForward(self.pipeline.unet)
        self.weights = Weights(
            run, self.pipeline, settings["base_model"], self.trained.verdict["base_model"]
        )
        self.model_hash = self.weights.hash_of("tuned")
        self.album = Album(run, self.suffix)
        self._at_work = threading.Lock()

    def _load(self, model: str, safety_checker: bool) -> StableDiffusionPipeline:
        pipeline = load_pipeline(model, self.device.dtype).to(self.device.device)
        self.schedule = dict(pipeline.scheduler.config)
        sample_fast(pipeline)
        for part in (pipeline.unet, pipeline.vae):  # convolutions are faster so, on CPU and GPU
            part.to(memory_format=torch.channels_last)
        if self.device.attention == "xformers":
            pipeline.enable_xformers_memory_efficient_attention()
        if not safety_checker:
            pipeline.register_modules(safety_checker=None)
            pipeline.register_to_config(requires_safety_checker=False)
        return pipeline

    def __str__(self) -> str:
        checks = self.pipeline.safety_checker is not None
        lines = [self.device, f"safety checker: {'on' if checks else 'off'}"]
        return "\n".join(map(str, lines + self.trained.remarks()))

    def styled(self, prompt: str) -> str:
        """The prompt with the suffix at its end, once."""
        return self.prompts.styled(prompt)

    def draw(
        self, requests: Sequence[Request], batch_size: int = 8, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Draw requests that differ in prompt, seed and negative prompt alone.

        Each picture has noise of its own from its seed, so it does not depend on its neighbours. A CPU gains
        little from batches: there pictures are drawn one by one, and are the same to the bit in any company.
        """
        requests = [self._sized(request) for request in requests]
        if self.device.device.type == "cpu":
            batch_size = 1
        images: list[Image.Image] = []
        captured = self.forward.installed() if self.device.captures else nullcontext()
        with self._at_work, captured:
            self._prepare(requests[0])
            for start in range(0, len(requests), batch_size):
                some = requests[start : start + batch_size]
                watch = _watcher(some[0], progress, start, len(requests), len(some))
                images += self._batch(some, watch)
        return images

    def _sized(self, request: Request) -> Request:
        return replace(
            request,
            width_px=request.width_px or self.resolution_px,
            height_px=request.height_px or self.resolution_px,
        )

    def _prepare(self, request: Request) -> None:
        if request.scheduler not in SCHEDULERS:
            raise RunError(
                f"scheduler is {request.scheduler!r}: choose one of {', '.join(SCHEDULERS)}"
            )
        steps = request.num_inference_steps
        self.pipeline.scheduler = make_scheduler(request.scheduler, self.schedule, steps)
        self.weights.put(request.model, request.strength)

    def _batch(self, requests: list[Request], watch: Callable) -> list[Image.Image]:
        first = requests[0]
        output = self.pipeline(
            prompt=[self.prompts.fit(request.prompt) for request in requests],
            negative_prompt=[self.prompts.fit(request.negative_prompt) for request in requests],
            height=first.height_px,
            width=first.width_px,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            callback_on_step_end=watch,
        )
        blocked = output.nsfw_content_detected or [False] * len(requests)
        return [
            blocked_label(image.size) if hidden else image
            for image, hidden in zip(output.images, blocked, strict=True)
        ]

    def settings(self, request: Request) -> dict[str, object]:
        """All that a picture is drawn from; what stands in its PNG and in the .json beside it."""
        sized = vars(self._sized(request))
        return sized | {"model_hash": self.weights.hash_of(request.model)}

    def save(self, request: Request, image: Image.Image) -> Path:
        """Keep a picture in samples/ with its settings inside and beside it."""
        return self.album.save(self.settings(request), image)

    def redraw(self, path: Path) -> Image.Image:
        """Draw a saved picture again from the settings inside it.

        Raises RunError if they are not there, or were another model's.
        """
        settings = self.album.read(path)
        asked = Request(**{f.name: settings[f.name] for f in fields(Request) if f.name in settings})
        if settings["model_hash"] != self.weights.hash_of(asked.model):
            raise RunError(f"{path} was drawn by other weights than {self.run.model} has now")
        return self.draw([asked])[0]


def blocked_label(size: tuple[int, int]) -> Image.Image:
    """What stands in the place of a picture that the safety checker blocked."""
    label = Image.new("RGB", size, "#d9d4dd")
    font = ImageFont.load_default(size=max(8, size[0] // 12))
    middle = (size[0] // 2, size[1] // 2)
    text = "blocked by the\nsafety checker"
    ImageDraw.Draw(label).multiline_text(middle, text, INK, font, anchor="mm", align="center")
    label.info["blocked"] = True
    return label


def is_blocked(image: Image.Image) -> bool:
    """Whether the safety checker blocked it."""
    return bool(image.info.get("blocked"))


def _watcher(
    request: Request, progress: Progress | None, start: int, count: int, batch: int
) -> Callable[..., dict]:
    """What a pipeline calls after each step."""

    def watch(pipeline: Any, step: int, _timestep: object, values: dict) -> dict:
        steps = pipeline.num_timesteps
        if progress:
            progress(start * steps + (step + 1) * batch, count * steps)
        if step == steps - 1 and not values["latents"].isfinite().all():
            raise RunError(
                f"{request.scheduler} in {request.num_inference_steps} steps gives no numbers (NaN or inf) with "
                f"the weights of {request.model!r}: take another scheduler or number of steps"
            )
        return values

    return watch


def settings_of(
    run: Run, more: dict[str, Any] | None = None, **values: str | float | bool | None
) -> InferenceConfig:
    """The config of 05 from its parameters; steps and guidance that are None are those of 04's previews."""
    trained = read_trained(run).settings
    for name in ("num_inference_steps", "guidance_scale"):
        values[name] = trained[name] if values.get(name) is None else values[name]
    return configure(InferenceConfig, more, run=run.name, **values)


def requests_of(config: InferenceConfig, studio: Studio) -> list[Request]:
    """What a config asks for: each of its prompts, or of the previews', `num_images` times."""
    prompts = [line.strip() for line in config.prompts.splitlines() if line.strip()]
    prompts = prompts or studio.trained.settings["prompts"] or held_out_captions(studio)[:4]
    requests = [
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
    for prompt in dict.fromkeys([r.prompt for r in requests] + [config.negative_prompt]):
        if said := studio.prompts.told(prompt):
            log.warning(said)
    return requests


def held_out_captions(studio: Studio) -> list[str]:
    """The captions of the images that training did not see, without the suffix; if there are none, of those it did."""
    return captions_of(studio, "validation") or captions_of(studio, "train")


def captions_of(studio: Studio, split: str) -> list[str]:
    """The captions of a split's images in order of file name, without the suffix."""
    return [caption for _, caption in studio.trained.pictures(split)]


def draw_missing(studio: Studio, requests: Sequence[Request], batch_size: int) -> Iterator[Path]:
    """Draw and keep what samples/ lacks, yielding each picture's path."""
    for start in range(0, len(requests), batch_size):
        some = requests[start : start + batch_size]
        wanted = [r for r in some if not studio.album.has(studio.settings(r))]
        if wanted:
            for request, image in zip(wanted, studio.draw(wanted, batch_size), strict=True):
                studio.save(request, image)
        yield from (studio.album.path(studio.settings(request)) for request in some)
