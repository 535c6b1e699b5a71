"""Draw from a picture: image to image, inpainting, and by a sketch, with the text pipeline's own components."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from helpers.core.errors import RunError
from helpers.inference.draw.fit_picture import to_white_lines
from helpers.models.controlnet import ControlNet
from helpers.models.families import Family, Settings


@dataclass(frozen=True)
class FromPicture:
    """What a picture is drawn from beside its prompt. Pictures are named by their SHA-256 in samples/inputs/.

    denoising_strength  the share of the steps that is run: 0 keeps the picture, 1 begins with noise alone
    Raises RunError for a strength or scale out of bounds.
    """

    image: str
    mask: str = ""  # white is drawn anew, the rest keeps its pixels; "" draws all of it anew
    denoising_strength: float = 0.6
    controlnet: str = (
        ""  # the SHA-256 of a ControlNet: the image is a sketch, whose lines are followed
    )
    control_scale: float = 1.0  # how closely

    def __post_init__(self) -> None:
        for name, high in (("denoising_strength", 1), ("control_scale", 2)):
            if not 0 <= getattr(self, name) <= high:
                raise RunError(f"{name} is {getattr(self, name)}: give a number from 0 to {high}")

    def steps_run(self, num_inference_steps: int) -> int:
        """Return how many of the steps are run, as diffusers' pipelines count them."""
        return (
            num_inference_steps
            if self.controlnet
            else int(num_inference_steps * self.denoising_strength)
        )


class PicturePipelines:
    """The pipelines that draw from pictures. All have the modules of one text pipeline, which are in memory once."""

    def __init__(self, family: Family, settings: Settings, text: DiffusionPipeline) -> None:
        self.family, self.text = family, text
        self.scheduler = text.scheduler
        self.vae_dtype = family.vae_dtype(settings["vae"], text.vae.dtype)
        self._made: dict[type, DiffusionPipeline] = {}

    def _pipeline(self, kind: type, **parts: nn.Module) -> DiffusionPipeline:
        if kind not in self._made:
            # not from_pipe: it converts the shared modules to float32
            known = inspect.signature(kind.__init__).parameters
            given = {
                **self.text.config,
                **self.family.PIPELINE_OPTIONS,
                **self.text.components,
                # as it was loaded: pipelines change settings of schedulers in place
                "scheduler": self.scheduler,
                **parts,
            }
            made = kind(**{name: value for name, value in given.items() if name in known})
            made.set_progress_bar_config(disable=True)
            self._made[kind] = made
        made = self._made[kind]
        made.scheduler = self.text.scheduler  # another at each drawing
        return made

    def image_to_image(
        self, image: Image.Image, strength: float, count: int
    ) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """Return the pipeline, and its arguments for `count` prompts, that begins with a picture's noised latents.

        The noise is that which the text pipeline draws from the same seeds.
        """
        # latents, not pixels: the pipeline would draw a sample of them from each seed, before the noise
        latents = self.encode(image).repeat(count, 1, 1, 1)
        pipeline = self._pipeline(self.family.IMAGE_TO_IMAGE)
        return pipeline, {"image": latents, "strength": strength}

    def inpainting(
        self, image: Image.Image, mask: Image.Image, strength: float, count: int
    ) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """Return the pipeline, and its arguments for `count` prompts, that draws the white part of a mask anew."""
        pipeline = self._pipeline(self.family.INPAINTING)
        latents, factor = self.encode(image).repeat(count, 1, 1, 1), pipeline.vae_scale_factor
        # a latent is drawn anew if any of its pixels is
        small = mask.reduce(factor).point(lambda level: 255 * (level > 0))
        given = {
            "image": latents,
            "mask_image": small.resize(mask.size, Image.Resampling.NEAREST),
            "masked_image_latents": latents,  # else it would mask pixels; this UNet reads neither
            "width": image.width,
            "height": image.height,
            "strength": strength,
        }
        return pipeline, given

    def by_sketch(
        self, sketch: Image.Image, controlnet: ControlNet, scale: float, count: int
    ) -> tuple[DiffusionPipeline, dict[str, Any]]:
        """Return the pipeline, and its arguments for `count` prompts, that follows the lines of a sketch."""
        pipeline = self._pipeline(self.family.CONTROLNET, controlnet=controlnet.model)
        size = {"width": sketch.width, "height": sketch.height}
        image = [to_white_lines(sketch)] * count
        return pipeline, {"image": image, "controlnet_conditioning_scale": scale} | size

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Tensor:
        """Return a picture's scaled latents (1, 4, h, w): the mean of the autoencoder's distribution."""
        pixels = self.text.image_processor.preprocess(image)
        with self._vae() as vae:
            latents = self.family.encode_image(vae, pixels.to(vae.device, vae.dtype))
        return latents.to(self.text.unet.dtype)

    @torch.no_grad()
    def through_autoencoder(self, image: Image.Image) -> Image.Image:
        """Return a picture encoded to latents and decoded again: what is left of it at a strength of 0."""
        latents = self.encode(image)
        with self._vae() as vae:
            pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return self.text.image_processor.postprocess(pixels.float())[0]

    @contextmanager
    def _vae(self) -> Iterator[nn.Module]:
        vae = self.text.vae
        dtype = vae.dtype
        nn.Module.to(vae, self.vae_dtype)
        try:
            yield vae
        finally:
            nn.Module.to(vae, dtype)
