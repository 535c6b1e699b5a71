"""Draw pictures with a run's model, base model or checkpoints."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from helpers.config import InferenceConfig, configure
from helpers.core.errors import OutOfMemoryError, RunError
from helpers.core.files import find_corruption
from helpers.core.run import Run
from helpers.figures.pictures import INK
from helpers.host.device import pick_device
from helpers.inference.draw.album import Album, Settings
from helpers.inference.draw.from_picture import PicturePipelines
from helpers.inference.draw.prompts import Prompts
from helpers.inference.draw.request import OPTIONAL, Request
from helpers.inference.draw.schedulers import (
    MAX_SPEED_STEPS,
    SCHEDULERS,
    SPEED_SCHEDULERS,
    TCD_ETA,
    make_scheduler,
)
from helpers.inference.draw.speed import SpeedLora, load_speed_lora
from helpers.inference.draw.weights import Weights
from helpers.inference.trained import read_trained
from helpers.models.capture import CapturedForward
from helpers.models.controlnet import ControlNet
from helpers.models.families import read_settings
from helpers.models.light_lora import LightLora, make_light_lora
from helpers.models.pipeline import decode_in_tiles, load_pipeline, sample_fast

WITHIN_A_BATCH = {"prompt": "", "seed": 0}  # what may differ in it
NO_CONTROLNET = (
    "that picture is drawn with a ControlNet that is not loaded: set controlnet in more to the one that was used, and "
    "run 05_inference from its top again"
)
Progress = Callable[[int, int], None]  # denoising steps done, and in all
log = logging.getLogger(__name__)


class Cancelled(Exception):
    """An exception that a progress callback raises to stop a drawing."""


class Sampler:
    """A loaded pipeline that draws pictures with a run's model, base model or checkpoints.

    controlnet  a hub id or folder of a ControlNet, to draw by sketches
    Raises RunError if 04 has not ended, model/ is corrupt, or the ControlNet is missing or of another family.
    """

    def __init__(self, run: Run, *, safety_checker: bool = True, controlnet: str = "") -> None:
        run.require(run.verdict, "train")
        if what := find_corruption(run.model):
            raise RunError(f"{what}: run 04_train again")
        self.run = run
        self.trained = read_trained(run)
        settings = self.trained.settings
        self.method, self.resolution_px = settings["method"], settings["resolution_px"]
        self.suffix = self.trained.suffix
        attention, capture = settings["attention"], settings.get("capture", "auto")
        self.device = pick_device(attention=attention, capture=capture)
        self.pipeline = self._load_pipeline(str(run.model), safety_checker)
        tokenizer = self.pipeline.tokenizer
        self.prompts = Prompts(tokenizer, self.suffix, tokenizer.model_max_length)
        self.forward = CapturedForward(self.pipeline.unet)
        base_model, base_hash = settings["base_model"], self.trained.verdict["base_model"]
        self.weights = Weights(run, self.pipeline, base_model, base_hash)
        self.model_hash = self.weights.hash_of("tuned")
        self.album = Album(run, self.suffix)
        family = self.weights.family
        self.pictures = PicturePipelines(family, read_settings(run.model), self.pipeline)
        self.controlnet = ControlNet(controlnet, self.pipeline.unet) if controlnet else None
        self.speed: SpeedLora | None = None
        # rank and share that were asked for
        self._light: tuple[int, float, LightLora] | None = None
        self._lock = threading.Lock()

    def _load_pipeline(self, model: str, safety_checker: bool) -> DiffusionPipeline:
        pipeline = load_pipeline(model, self.device.dtype, safety_checker=safety_checker)
        pipeline.to(self.device.device)
        self.scheduler_config = dict(pipeline.scheduler.config)
        sample_fast(pipeline)
        pipeline.vae.enable_slicing()  # one picture at a time: eight of 1024 px would take 6.5 GB
        for part in (pipeline.unet, pipeline.vae):  # faster convolutions, on CPU and GPU
            part.to(memory_format=torch.channels_last)
        if self.device.attention == "xformers":
            pipeline.enable_xformers_memory_efficient_attention()
        return pipeline

    def __str__(self) -> str:
        checks = getattr(self.pipeline, "safety_checker", None) is not None
        lines = [str(self.device), f"safety checker: {'on' if checks else 'off'}"]
        lines += [str(self.controlnet)] if self.controlnet else []
        return "\n".join(lines + self.trained.remarks())

    def styled(self, prompt: str) -> str:
        """Return the prompt with the suffix exactly once, at the end."""
        return self.prompts.styled(prompt)

    def use_speed_lora(self, config: InferenceConfig) -> SpeedLora | None:
        """Load a config's speed LoRA and return it, or None if it names none. Raises RunError if it does not fit."""
        if not config.speed_lora:
            return None
        self.speed = load_speed_lora(config, self.pipeline, self.weights.all)
        self.weights.use_speed(self.speed.lora)
        return self.speed

    def light_lora(self, config: InferenceConfig) -> LightLora | None:
        """Return the light LoRA that a config asks for, which is drawn as the model `light`, or None.

        Raises RunError if there is nothing to keep, or lora_share cannot be kept.
        """
        asked = config.lora_rank, config.lora_share
        if not any(asked):
            return None
        if self._light is None or self._light[:2] != asked:
            weights = self.weights
            light = make_light_lora(weights.base, weights.change, *asked, self.device.device)
            self._light = (*asked, light)
            weights.use_light(light.lora)
        return self._light[2]

    def draw(
        self, requests: Sequence[Request], batch_size: int = 8, progress: Progress | None = None
    ) -> list[Image.Image]:
        """Return a picture for each request. The requests may differ only in prompt and seed.

        A picture that the safety checker blocks is replaced by `blocked_label`. Each picture's noise comes from its own
        seed, so it does not depend on the batch. On a CPU the batch size is 1: batches gain little, and pictures are
        then bitwise equal for any `batch_size`.
        """
        if not requests:
            return []
        requests = [self._fill_size(request) for request in requests]
        first = requests[0]
        self._check(first)
        pixels = first.width_px * first.height_px  # `batch_size` pictures of 512 px, two of 1024
        batch_size = min(batch_size, max(1, batch_size * 512**2 // pixels))
        batch_size = self.limit_batch(batch_size)
        captured = self.forward.installed() if self.device.captures else nullcontext()
        with self._lock, captured:
            self.pipeline.scheduler = make_scheduler(
                first.scheduler, self.scheduler_config, first.num_inference_steps
            )
            self.weights.load(first.model, first.strength, first.speed)
            decode_in_tiles(self.pipeline.vae, max(first.width_px, first.height_px))
            return self._draw_batches(requests, batch_size, progress)

    def _draw_batches(
        self, requests: list[Request], batch_size: int, progress: Progress | None
    ) -> list[Image.Image]:
        """Draw in batches, of half as many pictures each time that memory runs out (OOM)."""
        images: list[Image.Image] = []
        while (start := len(images)) < len(requests):
            try:
                images += self._draw_batch(requests, slice(start, start + batch_size), progress)
                continue
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    size = f"{requests[0].width_px} x {requests[0].height_px} px"
                    raise OutOfMemoryError(
                        f"out of memory at one picture of {size}: draw it smaller, or restart the runtime, so that "
                        "nothing else holds memory"
                    ) from error
            batch_size //= 2  # here, as an error keeps what its frames hold
            torch.cuda.empty_cache()
        return images

    def _check(self, request: Request) -> None:
        known = SPEED_SCHEDULERS if request.speed else SCHEDULERS
        if request.scheduler not in known:
            raise RunError(f"scheduler is {request.scheduler!r}: choose one of {', '.join(known)}")
        if request.speed and self.speed is None:
            raise RunError("no speed LoRA is loaded: set speed_lora in more, as it was drawn with")
        if request.speed and request.num_inference_steps > MAX_SPEED_STEPS:
            raise RunError(f"a speed LoRA draws in 1 to {MAX_SPEED_STEPS} steps: take fewer")

    def limit_batch(self, batch_size: int) -> int:
        """Return the number of pictures that are drawn at once: `batch_size`, or 1 on a CPU."""
        return 1 if self.device.device.type == "cpu" else batch_size

    def _fill_size(self, request: Request) -> Request:
        side = self.resolution_px
        sizes = {"width_px": request.width_px or side, "height_px": request.height_px or side}
        return replace(request, **sizes)

    def _draw_batch(
        self, requests: list[Request], part: slice, progress: Progress | None
    ) -> list[Image.Image]:
        batch = requests[part]
        first = batch[0]
        image, mask = self._read_inputs(first)

        def on_step_end(pipeline: Any, step: int, _timestep: object, tensors: dict) -> dict:
            steps = pipeline.num_timesteps
            if progress:
                progress(part.start * steps + (step + 1) * len(batch), len(requests) * steps)
            if step == steps - 1 and not tensors["latents"].isfinite().all():
                raise RunError(
                    f"{first.scheduler} in {first.num_inference_steps} steps gives NaN or inf with the weights of "
                    f"{first.model!r}: choose another scheduler or number of steps"
                )
            return tensors

        if image and not first.from_picture.steps_run(first.num_inference_steps):
            drawn = self.pictures.through_autoencoder(image)
            return [_keep_outside(mask, image, drawn)] * len(batch)
        pipeline, given = self._pipeline_for(first, image, mask, len(batch))
        negative = self.prompts.truncate(first.negative_prompt)
        output = pipeline(
            prompt=[self.prompts.truncate(request.prompt) for request in batch],
            negative_prompt=[negative] * len(batch) if negative else None,
            num_inference_steps=first.num_inference_steps,
            guidance_scale=first.guidance_scale,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            callback_on_step_end=on_step_end,
            **given,
            **({"eta": TCD_ETA} if first.scheduler == "TCD" else {}),
        )
        blocked = getattr(output, "nsfw_content_detected", None) or [False] * len(batch)
        return [
            blocked_label(drawn.size) if is_blocked else _keep_outside(mask, image, drawn)
            for drawn, is_blocked in zip(output.images, blocked, strict=True)
        ]

    def _read_inputs(self, request: Request) -> tuple[Image.Image | None, Image.Image | None]:
        if not (start := request.from_picture):
            return None, None
        if start.mask and start.controlnet:
            raise RunError("a sketch has no mask: choose one of them")
        if start.controlnet and (not self.controlnet or start.controlnet != self.controlnet.hash):
            raise RunError(NO_CONTROLNET)
        image = self.album.read_input(start.image)
        mask = self.album.read_input(start.mask) if start.mask else None
        size = request.width_px, request.height_px
        if wrong := [i.size for i in (image, mask) if i and i.size != size]:
            raise RunError(
                f"what is drawn from is {wrong[0][0]} x {wrong[0][1]} px and the drawing {size[0]} x {size[1]} px: "
                "make them the same"
            )
        return image, mask

    def _pipeline_for(
        self, request: Request, image: Image.Image | None, mask: Image.Image | None, count: int
    ) -> tuple[DiffusionPipeline, dict[str, Any]]:
        start, pictures = request.from_picture, self.pictures
        if not start:
            return self.pipeline, {"height": request.height_px, "width": request.width_px}
        if start.controlnet:
            return pictures.by_sketch(image, self.controlnet, start.control_scale, count)
        if mask:
            return pictures.inpainting(image, mask, start.denoising_strength, count)
        return pictures.image_to_image(image, start.denoising_strength, count)

    def settings(self, request: Request) -> Settings:
        """Return all settings that a picture depends on, as saved in the picture's PNG and .json."""
        settings = asdict(self._fill_size(request))
        settings = {k: v for k, v in settings.items() if v or k not in OPTIONAL}
        settings |= {"model_hash": self.weights.hash_of(request.model)}
        return settings | ({"speed_lora_hash": self.speed.sha256} if request.speed else {})

    def save(self, request: Request, image: Image.Image) -> Path:
        """Save a picture and its settings in samples/."""
        return self.album.save(self.settings(request), image)

    def redraw(self, path: Path) -> Image.Image:
        """Draw a saved picture again from the settings embedded in its PNG.

        Raises RunError if the PNG has no settings, or was drawn with other weights or from a picture that is gone.
        """
        settings = self.album.read(path)
        if what := self.find_change(settings):
            raise RunError(f"{path} was drawn {what}")
        return self.draw([Request.read(settings)])[0]

    def find_change(self, settings: Settings) -> str:
        """Return what has changed since a saved picture was drawn, so that it cannot be drawn again, or "".

        Raises RunError if its checkpoint is missing or corrupt.
        """
        if settings.get("model_hash") != self.weights.hash_of(settings["model"]):
            return f"with other weights than {self.run.model} has now: it cannot be drawn again"
        loaded = self.speed.sha256 if self.speed else ""
        if settings.get("speed") and settings.get("speed_lora_hash") != loaded:
            return "with a speed LoRA that is not loaded: set speed_lora"
        return ""


def _keep_outside(
    mask: Image.Image | None, image: Image.Image | None, drawn: Image.Image
) -> Image.Image:
    return Image.composite(drawn, image, mask) if mask else drawn


def blocked_label(size: tuple[int, int]) -> Image.Image:
    """Return the grey placeholder for a picture that the safety checker blocked."""
    label = Image.new("RGB", size, "#d9d4dd")
    font = ImageFont.load_default(size=max(8, size[0] // 12))
    middle = (size[0] // 2, size[1] // 2)
    text = "blocked by the\nsafety checker"
    ImageDraw.Draw(label).multiline_text(middle, text, INK, font, anchor="mm", align="center")
    label.info["blocked"] = True
    return label


def is_blocked(image: Image.Image) -> bool:
    """Return True if an image is the placeholder of a blocked picture."""
    return bool(image.info.get("blocked"))


def make_config(
    run: Run, more: dict[str, Any] | None = None, **values: str | float | bool | None
) -> InferenceConfig:
    """Create notebook 05's config from its parameters. By default, steps and guidance match the training previews."""
    trained = read_trained(run).settings
    for name in ("num_inference_steps", "guidance_scale"):
        values[name] = trained[name] if values.get(name) is None else values[name]
    config = configure(InferenceConfig, more, run=run.name, **values)
    if trained["method"] == "lora" and config.lora_rank >= trained["rank"]:
        raise RunError(
            f"lora_rank is {config.lora_rank} and the model's LoRA has rank {trained['rank']}: give a smaller one"
        )
    return config


def make_requests(config: InferenceConfig, sampler: Sampler) -> list[Request]:
    """Return `num_images` requests per prompt. If the config has no prompts, the prompts of training previews are used.

    Logs a warning for each prompt that is longer than the text encoder reads.
    """
    prompts = [line.strip() for line in config.prompts.splitlines() if line.strip()]
    trained = sampler.trained
    prompts = prompts or trained.settings["prompts"] or trained.held_out_captions()[:4]
    requests = [
        Request.of(
            config,
            sampler.styled(prompt) if config.add_suffix else prompt,
            config.seed + i * config.num_images + k,
            config.negative_prompt,
        )
        for i, prompt in enumerate(prompts)
        for k in range(config.num_images)
    ]
    for prompt in dict.fromkeys([r.prompt for r in requests] + [config.negative_prompt]):
        if warning := sampler.prompts.truncation_warning(prompt):
            log.warning(warning)
    return requests


def draw_missing(sampler: Sampler, requests: Sequence[Request], batch_size: int) -> Iterator[Path]:
    """Yield the path of each request's picture, after drawing and saving the picture if samples/ lacks it.

    Requests that follow one another and differ only in prompt and seed are drawn in batches. What a kill interrupts
    is one batch.
    """
    album, batch_size = sampler.album, sampler.limit_batch(batch_size)
    for _, alike in groupby(requests, key=lambda r: replace(r, **WITHIN_A_BATCH)):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            missing = [r for r in batch if not album.has(sampler.settings(r))]
            for request, image in zip(missing, sampler.draw(missing, batch_size), strict=True):
                sampler.save(request, image)
            yield from (album.path(sampler.settings(request)) for request in batch)
