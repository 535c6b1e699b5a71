"""Judge a model by its pictures: style gain, suffix switch, style distance, copies, prompt adherence.

The base and the tuned model draw the same prompts at the same seeds, and both are compared with real art.
"""

from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from PIL import Image

from helpers.config import InferenceConfig
from helpers.figures.pictures import evenly, middle_square, open_rgb
from helpers.inference.draw.request import Request
from helpers.inference.draw.sampler import Sampler, is_blocked
from helpers.inference.judge.copies import CopyFinder
from helpers.inference.judge.encoders import ClipScore, ImageModel
from helpers.inference.judge.groups import COMPARED, Groups, Interval, Pictures
from helpers.inference.judge.metrics import load_metrics
from helpers.inference.judge.style import HALFWAY, StyleAxis, features, order_share, style_gain
from helpers.inference.judge.style_distance import measure_distances

SAMPLE_SEED, PROBE_SEED = 500, 900  # added to the config's seed


@dataclass(frozen=True)
class Judgement:
    """The results of judging drawn pictures. A measure with too few pictures is {"left_out": reason}."""

    style_gain: Interval | dict[str, str]
    suffix_switch: dict[str, Any]  # shares of samples in the style with the suffix, and not without
    copies: dict[str, Any]
    style_order: float | None  # share of bootstrap draws with base < tuned < held-out art
    encoders: dict[str, Any]  # style gain and KID by an image model, if one was given
    samples: int
    blocked: int  # samples that the safety checker blocked; they are in no other figure
    metrics: dict[str, Any]  # of metrics.py, by their keys in report.json


def draw_groups(config: InferenceConfig, sampler: Sampler) -> Groups:
    """Load the real images, and draw pictures from held-out captions and from training captions."""
    requests, learnt = _requests(config, sampler), sampler.trained.pictures("train")
    styled = judged_requests(config, sampler)
    probed = [
        Request.of(config, sampler.styled(caption), config.seed + PROBE_SEED + i)
        for i, (_, caption) in enumerate(evenly(learnt, config.probed_captions))
    ]
    return Groups(
        train=_load_images(sampler, "train"),
        held_out=_load_images(sampler, "validation"),
        base=sampler.draw([replace(r, model="base") for r in styled], config.batch_size),
        tuned=sampler.draw(styled, config.batch_size),
        plain=sampler.draw(requests, config.batch_size),
        probe=sampler.draw(probed, config.batch_size),
    )


def judged_requests(config: InferenceConfig, sampler: Sampler) -> list[Request]:
    """Return the requests whose pictures are judged: captions of held-out images, with the suffix."""
    return [replace(r, prompt=sampler.styled(r.prompt)) for r in _requests(config, sampler)]


def _requests(config: InferenceConfig, sampler: Sampler) -> list[Request]:
    captions = sampler.trained.held_out_captions()
    return [
        Request.of(config, captions[i % len(captions)], config.seed + SAMPLE_SEED + i)
        for i in range(config.judged_samples)
    ]


def _load_images(sampler: Sampler, split: str, side_px: int = 256) -> list[Image.Image]:
    images = [middle_square(open_rgb(path)) for path, _ in sampler.trained.pictures(split)]
    for image in images:
        image.thumbnail((side_px, side_px))
    return images


def judge(groups: Groups, encoder: ImageModel | None = None) -> Judgement:
    """Judge the pictures of all groups. If an encoder is given, its features measure the style a second time.

    The style axis is fitted to training images and every other sample of the base, and measured on held-out images
    and the other samples, so that no figure is measured on what it was fitted to.
    """
    pictures = _shown(groups)
    gain, switch, order = _judge_style(pictures)
    finder = CopyFinder(pictures["train"], pictures["held_out"])
    probe = finder.figures(pictures["probe"]) if pictures["probe"] else None
    return Judgement(
        style_gain=gain,
        suffix_switch=switch,
        copies=finder.figures(pictures["tuned"]) | {"probe": probe},
        style_order=order,
        encoders={encoder.name: _judge_by_model(pictures, encoder)} if encoder else {},
        samples=len(groups.tuned),
        blocked=sum(pictures.blocked.values()),
        metrics={key: metric.measure(pictures) for key, metric in load_metrics().items()},
    )


def style_gain_of(groups: Groups, drawn: list[Image.Image]) -> Interval | dict[str, str]:
    """Return the style gain of pictures drawn from `judged_requests`, in place of the tuned model's."""
    return _judge_style(_shown(replace(groups, tuned=drawn)))[0]


def _shown(groups: Groups) -> Pictures:
    shown = {name: [i for i in group if not is_blocked(i)] for name, group in vars(groups).items()}
    blocked = {name: len(group) - len(shown[name]) for name, group in vars(groups).items()}
    return Pictures(shown, blocked)


def _judge_style(
    pictures: Pictures,
) -> tuple[Interval | dict[str, str], dict[str, Any], float | None]:
    if reason := pictures.why_too_few():
        return {"left_out": reason}, {"left_out": reason}, None
    base, tuned, plain, art = _place_on_axis(
        {name: np.stack([features(i) for i in pictures[name]]) for name in COMPARED}
    )
    switch = {
        "with_suffix": float((tuned > HALFWAY).mean()),
        "without_suffix": float((plain < HALFWAY).mean()),
        "held_out_art": float((art > HALFWAY).mean()),
        "base_model": float((base < HALFWAY).mean()),
    }
    return style_gain(base, tuned, art), switch, order_share(base, tuned, art)


def _place_on_axis(found: dict[str, np.ndarray]) -> list[np.ndarray]:
    axis = StyleAxis.between(found["base"][::2], found["train"])
    rest = (found["base"][1::2], found["tuned"], found["plain"], found["held_out"])
    return [axis.place(pictures) for pictures in rest]


def _judge_by_model(pictures: Pictures, encoder: ImageModel) -> dict[str, Any]:
    if reason := pictures.why_too_few():
        return {"style_gain": {"left_out": reason}}
    base, tuned, _, art = _place_on_axis({name: encoder(pictures[name]) for name in COMPARED})
    gain = vars(style_gain(base, tuned, art))
    return {"style_gain": gain} | measure_distances(pictures, encoder)


def measure_adherence(config: InferenceConfig, sampler: Sampler, groups: Groups) -> dict[str, Any]:
    """Return the mean CLIPScores of the base and the tuned model, or {"left_out": reason} if nothing can be scored."""
    if not config.clip_model:
        return {"left_out": "no CLIP was given: set clip_model to a hub id or a folder"}
    clip = ClipScore(config.clip_model)
    captions = cycle(sampler.trained.held_out_captions())
    drawn = zip(groups.base, groups.tuned, captions, strict=False)
    pairs = [pair for pair in drawn if not any(map(is_blocked, pair[:2]))]
    if not pairs:
        return {"left_out": "the safety checker blocked a picture of each pair"}
    before, after, prompts = (list(side) for side in zip(*pairs, strict=True))
    base, tuned = clip.score(before, prompts), clip.score(after, prompts)
    rng = np.random.default_rng(0)
    changes = [float(rng.choice(tuned - base, len(pairs)).mean()) for _ in range(2000)]
    low, high = np.quantile(changes, (0.025, 0.975))
    figures = {"base": base.mean(), "tuned": tuned.mean(), "change": (tuned - base).mean()}
    figures |= {"change_low": low, "change_high": high}
    return {"model": config.clip_model} | {k: float(v) for k, v in figures.items()}
