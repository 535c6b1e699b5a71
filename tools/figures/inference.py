"""05: steps, guidance, the same seed before and after training, and how far the style moved."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from helpers.config.presets import DEMO_PROMPTS
from helpers.demo.scenes import SUFFIX, random_scene
from helpers.inference.judge.style import StyleAxis, features, style_gain
from helpers.models.pipeline import load_pipeline, sample_fast
from tools.figures.drawn import watercolour
from tools.figures.sheet import BLUE, GREEN, GREY, INK, WIDTH_PX, Sheet

BASE, TUNED = Path("assets/tiny-sd"), Path("runs/demo/model")
PROMPTS = list(DEMO_PROMPTS)  # pairs that no training picture holds
SEED, STEPS, GUIDANCE = 1000, 16, 4.0


@cache
def pipeline(folder: Path) -> StableDiffusionPipeline:
    return sample_fast(load_pipeline(str(folder), torch.float32, safety_checker=None))


def pictures(
    folder: Path,
    prompts: Sequence[str],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    seed: int = SEED,
) -> list[Image.Image]:
    """A picture for each prompt; the n-th has the seed `seed` + n."""
    sources = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    return pipeline(folder)(
        list(prompts), num_inference_steps=steps, guidance_scale=guidance, generator=sources
    ).images


def tuned_pictures(prompts: Sequence[str]) -> list[Image.Image]:
    return pictures(TUNED, prompts)


def steps() -> Sheet:
    choices = (2, 4, 8, 16)
    shown = [pictures(BASE, PROMPTS[:2], steps=count) for count in choices]
    return _columns("Steps: from noise to a picture", shown, [f"{n} steps" for n in choices])


def guidance() -> Sheet:
    choices = (1, 4, 8, 12)
    shown = [pictures(BASE, PROMPTS[:2], guidance=scale) for scale in choices]
    return _columns(
        "guidance_scale: how hard the words pull", shown, [f"guidance {n}" for n in choices]
    )


def _columns(title: str, shown: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> Sheet:
    """A column for each setting, a row for each prompt; the seed is the same along a row."""
    sheet = Sheet(72 + 218 * len(shown[0]) + 44)
    sheet.title(title)
    for column, (images, label) in enumerate(zip(shown, labels, strict=True)):
        x = 16 + 220 * column
        for row, image in enumerate(images):
            sheet.picture(image, x, 64 + 218 * row, 208)
        sheet.write(x + 104, sheet.height_px - 28, label, 24, GREY, "center")
    return sheet


def same_seed() -> Sheet:
    prompts = [prompt + SUFFIX for prompt in PROMPTS[3:]]
    sheet = Sheet(720)
    for row, (words, folder, colour) in enumerate(
        (("base model", BASE, GREY), ("tuned model, same prompts, same seeds", TUNED, BLUE))
    ):
        top = 10 + 355 * row
        sheet.write(WIDTH_PX / 2, top + 20, words, 26, colour, "center", weight="bold")
        for i, image in enumerate(pictures(folder, prompts)):
            sheet.picture(image, 15 + 295 * i, top + 48, 280)
    return sheet


def line() -> Sheet:
    """Where the base's, the tuned model's and held-out pictures lie on an axis fitted to other pictures."""
    prompts = [random_scene(n, held_out=True).caption + SUFFIX for n in range(24)]
    art = [watercolour(random_scene(n, held_out=True), 128) for n in range(24, 72)]
    base, tuned = pictures(BASE, prompts), pictures(TUNED, prompts)
    fitted = pictures(BASE, prompts, seed=SEED + 500)
    of_base, of_tuned, of_art, of_fitted = (
        np.stack([features(image) for image in images]) for images in (base, tuned, art, fitted)
    )
    axis = StyleAxis.between(of_fitted, of_art[24:])
    places = [axis.place(found) for found in (of_base, of_tuned, of_art[:24])]
    gain = style_gain(*places)
    low, high = places[0].mean(), places[2].mean()
    sheet = Sheet(500)
    sheet.title(f"The demo as it comes: style gain {gain.value:.2f} of 1")
    names = ("base model", "tuned model", "held-out art")
    for name, place, image, colour, above in zip(
        names, places, (base[0], tuned[0], art[0]), (GREY, BLUE, GREEN), (0, 1, 0), strict=True
    ):
        marks = 200 + 520 * (place - low) / (high - low)
        sheet.axes.scatter(
            marks, np.full(len(marks), 352 - 14 * above), s=60, color=colour, alpha=0.45, zorder=3
        )
        x = marks.mean()
        sheet.picture(image, x - 75 - 110 * above, 70, 150)
        sheet.write(x - 110 * above, 244, name, 24, colour, "center", weight="bold")
        sheet.arrow((x - 110 * above, 264), (x, 326), colour)
    sheet.axes.plot([20, 880], [380, 380], color=INK, linewidth=2)
    for x, words in ((200, "0"), (720, "1")):
        sheet.axes.plot([x, x], [372, 388], color=INK, linewidth=2)
        sheet.write(x, 410, words, 26, align="center")
    sheet.write(WIDTH_PX / 2, 462, "each dot is a picture", 23, GREY, "center")
    return sheet
