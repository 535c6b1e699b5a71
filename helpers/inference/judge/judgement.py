"""Did the style move, does the suffix switch it, did it copy? The base and the tuned model on the same prompts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from helpers.config import InferenceConfig
from helpers.figures.pictures import evenly, middle_square, open_rgb
from helpers.inference.draw.sampler import (
    Request,
    Studio,
    captions_of,
    held_out_captions,
    is_blocked,
)
from helpers.inference.judge.copies import CopyFinder
from helpers.inference.judge.encoders import BUILT_IN, ClipScore, Encoder, ImageModel, built_in
from helpers.inference.judge.style import (
    HALFWAY,
    Gain,
    StyleAxis,
    features,
    order_share,
    style_gain,
)
from helpers.inference.judge.style_distance import kid_interval

PROBE_SEED = 900
COMPARED = {  # groups by their names for a reader
    "train": "training images",
    "held_out": "held-out images",
    "base": "samples of the base model",
    "tuned": "samples of the tuned model",
    "plain": "samples of the tuned model without the suffix",
}


@dataclass(frozen=True)
class Groups:
    """Pictures to compare: real ones, and samples of the same prompts at the same seeds."""

    train: list[Image.Image]
    held_out: list[Image.Image]
    base: list[Image.Image]
    tuned: list[Image.Image]
    plain: list[Image.Image]  # tuned, without the suffix
    probe: list[Image.Image] = field(default_factory=list)  # tuned, of training captions


@dataclass(frozen=True)
class Judgement:
    """The figures of report.json that are about pictures. One without pictures enough is {"left_out": why}."""

    style_gain: Gain | dict[str, str]
    # shares of samples on the right side: with the suffix art, without it not
    suffix_switch: dict[str, Any]
    copies: dict[str, Any]
    kid: dict[str, Any]  # tuned to held-out, between floor and ceiling
    style_order: float | None  # share of bootstraps in which base < tuned < held-out art
    encoders: dict[str, Any]  # style gain and KID by an image model, where one was given
    samples: int
    blocked: int  # samples that the safety checker kept back; they are in no other figure


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
        train=_images_of(studio, "train"),
        held_out=_images_of(studio, "validation"),
        base=sample("base", styled=True),
        tuned=sample("tuned", styled=True),
        plain=sample("tuned", styled=False),
    )


def draw_probe(config: InferenceConfig, studio: Studio) -> list[Image.Image]:
    """Sample training captions: where a model learnt images by heart, this is what calls them up."""
    asked = evenly(captions_of(studio, "train"), config.probed_captions)
    steps, guidance = config.num_inference_steps, config.guidance_scale
    requests = [
        Request(studio.styled(prompt), config.seed + PROBE_SEED + i, "", steps, guidance)
        for i, prompt in enumerate(asked)
    ]
    return studio.draw(requests, config.batch_size) if requests else []


def _images_of(studio: Studio, split: str, side_px: int = 256) -> list[Image.Image]:
    images = []
    for path, _ in studio.trained.pictures(split):
        images.append(middle_square(open_rgb(path)))
        images[-1].thumbnail((side_px, side_px))
    return images


def judge(groups: Groups, encoder: ImageModel | None = None) -> Judgement:
    """Compare the groups.

    The axis is fitted to training images and every other sample of the base, and read on held-out
    images and the rest, so that no figure is measured on what it was fitted to.
    """
    shown = {
        name: [i for i in images if not is_blocked(i)] for name, images in vars(groups).items()
    }
    hidden = {name: len(images) - len(shown[name]) for name, images in vars(groups).items()}
    gain, switch, order = _style(shown, hidden)
    return Judgement(
        gain,
        switch,
        copies(shown),
        {"encoder": BUILT_IN} | _kid(shown, hidden, built_in(shown["train"])),
        order,
        {encoder.name: _by_model(shown, hidden, encoder)} if encoder else {},
        len(groups.tuned),
        sum(hidden.values()),
    )


def _lack(shown: dict[str, list[Image.Image]], hidden: dict[str, int], fewest: int = 1) -> str:
    """Which group has too few pictures to be compared, and why; empty if none has. Half of the base's fit the axis."""
    for name, words in COMPARED.items():
        if len(shown[name]) < max(fewest, 2 if name == "base" else 1):
            blocked = f": the safety checker blocked {hidden[name]}" if hidden[name] else ""
            return f"there are {len(shown[name])} {words}{blocked}"
    return ""


def _style(
    shown: dict[str, list[Image.Image]], hidden: dict[str, int]
) -> tuple[Gain | dict[str, str], dict[str, Any], float | None]:
    """Style gain, suffix switch and style order."""
    if reason := _lack(shown, hidden):
        return {"left_out": reason}, {"left_out": reason}, None
    base, tuned, plain, art = _places(
        {name: np.stack([features(i) for i in shown[name]]) for name in COMPARED}
    )
    switch = {
        "with_suffix": float((tuned > HALFWAY).mean()),
        "without_suffix": float((plain < HALFWAY).mean()),
        "held_out_art": float((art > HALFWAY).mean()),
        "base_model": float((base < HALFWAY).mean()),
    }
    return style_gain(base, tuned, art), switch, order_share(base, tuned, art)


def _places(seen: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Where base, tuned, plain and held-out pictures lie on the line from base to art."""
    axis = StyleAxis.between(seen["base"][::2], seen["train"])
    rest = (seen["base"][1::2], seen["tuned"], seen["plain"], seen["held_out"])
    return [axis.place(pictures) for pictures in rest]


def _by_model(
    shown: dict[str, list[Image.Image]], hidden: dict[str, int], encoder: ImageModel
) -> dict[str, Any]:
    if reason := _lack(shown, hidden):
        return {"style_gain": {"left_out": reason}}
    base, tuned, _, art = _places({name: encoder(shown[name]) for name in COMPARED})
    return {"style_gain": vars(style_gain(base, tuned, art))} | _kid(shown, hidden, encoder)


def _kid(
    shown: dict[str, list[Image.Image]], hidden: dict[str, int], encode: Encoder
) -> dict[str, Any]:
    """KID to held-out images: of training images (floor), of tuned samples, and of the base's (ceiling)."""
    if reason := _lack(shown, hidden, fewest=3):
        return {"left_out": f"{reason}; it takes three of each"}
    seen = {name: encode(shown[name]) for name in ("train", "tuned", "base", "held_out")}
    names = {"floor": "train", "tuned": "tuned", "ceiling": "base"}
    return {k: vars(kid_interval(seen[name], seen["held_out"])) for k, name in names.items()}


def copies(shown: dict[str, list[Image.Image]]) -> dict[str, Any]:
    """How near samples, and samples of training captions, come to a training image."""
    finder = CopyFinder(shown["train"], shown["held_out"])
    probe = finder.figures(shown["probe"]) if shown["probe"] else None
    return finder.figures(shown["tuned"]) | {"probe": probe}


def adherence(config: InferenceConfig, studio: Studio, groups: Groups) -> dict[str, Any]:
    """CLIPScore of base and tuned samples with their captions, or why it is left out."""
    if not config.clip_model:
        return {"left_out": "no CLIP was given: set clip_model to a hub id or a folder"}
    clip = ClipScore(config.clip_model)
    captions = held_out_captions(studio)
    pairs = [
        (base, tuned, captions[i % len(captions)])
        for i, (base, tuned) in enumerate(zip(groups.base, groups.tuned, strict=True))
        if not (is_blocked(base) or is_blocked(tuned))
    ]
    if not pairs:
        return {"left_out": "the safety checker blocked a picture of each pair"}
    before, after, asked = (list(side) for side in zip(*pairs, strict=True))
    base, tuned = clip.score(before, asked), clip.score(after, asked)
    rng = np.random.default_rng(0)
    change = [float(rng.choice(tuned - base, len(pairs)).mean()) for _ in range(2000)]
    low, high = np.quantile(change, (0.025, 0.975))
    figures = {"base": base.mean(), "tuned": tuned.mean(), "change": (tuned - base).mean()}
    figures |= {"change_low": low, "change_high": high}
    return {"model": config.clip_model} | {k: float(v) for k, v in figures.items()}
