"""Did the style move, does the suffix switch it, did it copy? The base and the tuned model on the same prompts."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from helpers.config import InferenceConfig
from helpers.inference.sample import Request, Studio, held_out_captions
from helpers.inference.style import (
    HALFWAY,
    Gain,
    StyleAxis,
    features,
    nearest,
    style_gain,
    thumbnail,
)
from helpers.pictures import middle_square, open_rgb
from helpers.run import Run

LIKELY_COPY = 0.99  # a sample is called a copy beyond this quantile of held-out pictures' likeness


@dataclass(frozen=True)
class Groups:
    """Pictures to compare: real ones, and samples of the same prompts at the same seeds."""

    train: list[Image.Image]
    held_out: list[Image.Image]
    base: list[Image.Image]
    tuned: list[Image.Image]
    plain: list[Image.Image]  # tuned, without the suffix


@dataclass(frozen=True)
class Judgement:
    """The figures of report.json that are about pictures."""

    style_gain: Gain
    suffix_switch: dict[
        str, float
    ]  # shares of samples on the right side: with the suffix art, without it not
    copies: dict[str, object]
    samples: int


def draw_groups(config: InferenceConfig, studio: Studio) -> Groups:
    """Sample held-out captions from the base, the tuned model, and the tuned model without the suffix."""
    captions = held_out_captions(studio)
    asked = [captions[i % len(captions)] for i in range(config.judged_samples)]

    def sample(model: str, *, styled: bool) -> list[Image.Image]:
        prompts = [studio.styled(prompt) if styled else prompt for prompt in asked]
        requests = [
            Request(
                prompt,
                config.seed + 500 + i,
                "",
                config.num_inference_steps,
                config.guidance_scale,
                model,
            )
            for i, prompt in enumerate(prompts)
        ]
        return studio.draw(requests, config.batch_size)

    return Groups(
        train=_split_images(studio.run, "train"),
        held_out=_split_images(studio.run, "validation"),
        base=sample("base", styled=True),
        tuned=sample("tuned", styled=True),
        plain=sample("tuned", styled=False),
    )


def _split_images(run: Run, split: str, side_px: int = 256) -> list[Image.Image]:
    images = []
    for path in run.split_images(split):
        images.append(middle_square(open_rgb(path)))
        images[-1].thumbnail((side_px, side_px))
    return images


def judge(groups: Groups) -> Judgement:
    """Compare the groups.

    The axis is fitted to training images and every other sample of the base, and read on held-out
    images and the rest, so that no figure is measured on what it was fitted to.
    """
    seen = {
        name: np.stack([features(image) for image in images])
        for name, images in vars(groups).items()
    }
    axis = StyleAxis.between(seen["base"][::2], seen["train"])
    base, tuned, plain, art = (
        axis.place(p) for p in (seen["base"][1::2], seen["tuned"], seen["plain"], seen["held_out"])
    )
    switch = {
        "with_suffix": float((tuned > HALFWAY).mean()),
        "without_suffix": float((plain < HALFWAY).mean()),
        "held_out_art": float((art > HALFWAY).mean()),
        "base_model": float((base < HALFWAY).mean()),
    }
    return Judgement(style_gain(base, tuned, art), switch, _copies(groups), len(groups.tuned))


def _copies(groups: Groups) -> dict[str, object]:
    """How near samples come to a training image, against how near held-out pictures come to one."""
    train = np.stack([thumbnail(image) for image in groups.train])
    held_out = [nearest(thumbnail(image), train)[1] for image in groups.held_out]
    found = [nearest(thumbnail(image), train) for image in groups.tuned]
    threshold = float(np.quantile(held_out, LIKELY_COPY))
    likest = max(range(len(found)), key=lambda i: found[i][1])
    return {
        "threshold": threshold,
        "share": float(np.mean([likeness > threshold for _, likeness in found])),
        "likest": {"sample": likest, "train": found[likest][0], "likeness": found[likest][1]},
    }
