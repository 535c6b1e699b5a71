"""05's sampling against the 50 steps that `DiffusionPipeline` takes by default: `python -m tests.benchmarks.sampling`.

In one run: the same prompts at the same seeds, the seconds by processor time, so that a busy machine does not
decide; style gain by the run's own figures, prompt adherence by the judge that no training saw (helpers/demo).
Also whether style gain puts base, half-trained, tuned and held-out art in order. Fails where a promise is not kept.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from helpers.config import InferenceConfig
from helpers.core.run import Run
from helpers.demo.scene_judge import exam, pixels_of, shares, the_judge
from helpers.inference.draw.sampler import Request, Sampler, make_config
from helpers.inference.judge.judgement import _load_images
from helpers.inference.judge.style import StyleAxis, features, order_share, style_gain

MOST_TIME, LEAST_ORDER = 0.40, 0.95
WORSE = 0.05  # of a share or of style gain; less is within the noise of this many samples


def alternate(
    draws: Sequence[Callable[[list[int]], list[Image.Image]]], count: int, at_once: int
) -> tuple[list[list[Image.Image]], list[float]]:
    """The pictures and seconds of each way to draw, some pictures at a time by turns."""
    images, seconds = [[] for _ in draws], [0.0 for _ in draws]
    for start in range(0, count, at_once):
        some = list(range(start, min(start + at_once, count)))
        for way, draw in enumerate(draws):
            began = time.process_time()
            images[way] += draw(some)
            seconds[way] += time.process_time() - began
    return images, seconds


def ours(
    sampler: Sampler, config: InferenceConfig, prompts: list[str], model: str, some: list[int]
) -> list:
    asked = [replace(Request.of(config, prompts[i], 7000 + i), model=model) for i in some]
    return sampler.draw(asked, config.batch_size)


def theirs(
    pipeline: DiffusionPipeline, guidance: float, prompts: list[str], some: list[int]
) -> list:
    seeds = {i: torch.Generator().manual_seed(7000 + i) for i in some}
    return [
        pipeline(prompts[i], guidance_scale=guidance, generator=seeds[i]).images[0] for i in some
    ]


def seen(images: list[Image.Image]) -> np.ndarray:
    return np.stack([features(image) for image in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--steps", type=int, help="in place of 05's default")
    args = parser.parse_args()
    samples = args.samples
    run = Run("demo")
    sampler, config, scenes = (
        Sampler(run),
        make_config(run, num_inference_steps=args.steps),
        exam(samples),
    )
    half, *_ = sampler.weights.steps()
    styled = [sampler.styled(scene.caption) for scene in scenes]
    pipeline = DiffusionPipeline.from_pretrained(run.model)
    pipeline.set_progress_bar_config(disable=True)
    everything = list(range(samples))
    ways = (
        partial(ours, sampler, config, styled, "tuned"),
        partial(theirs, pipeline, config.guidance_scale, styled),
    )
    for way in ways:  # what is made once is not counted
        way([0])
    (tuned, default), (seconds, default_seconds) = alternate(ways, samples, config.batch_size)
    base, middle = (ours(sampler, config, styled, name, everything) for name in ("base", half))
    train, art = (seen(_load_images(sampler, split)) for split in ("train", "validation"))
    axis = StyleAxis.between(seen(base)[::2], train)
    places = [axis.place(p) for p in (seen(base)[1::2], seen(middle), seen(tuned), art)]
    gain = style_gain(places[0], places[2], places[3]).value
    default_gain = style_gain(places[0], axis.place(seen(default)), places[3]).value
    judge = the_judge()
    kept, default_kept = (
        shares(judge, pixels_of(images), scenes, "watercolour") for images in (tuned, default)
    )
    measured = {
        "time, as a share of the default's": (seconds / default_seconds, "<=", MOST_TIME),
        "style gain": (gain, ">=", min(default_gain, 1.0) - WORSE),
        **{
            f"{name} as asked": (kept[name], ">=", default_kept[name] - WORSE)
            for name in ("animal", "colour", "place")
        },
        f"base < {half} < tuned < art": (order_share(*places), ">=", LEAST_ORDER),
    }
    broken = False
    print(
        f"{samples} samples, {torch.get_num_threads()} threads, gains of {half}: "
        f"{style_gain(places[0], places[1], places[3]).value:.3f}"
    )
    for name, (value, sign, bound) in measured.items():
        good = value <= bound if sign == "<=" else value >= bound
        broken |= not good
        print(f"{name:36} {value:6.3f}  {sign} {bound:.3f}{'' if good else '   NOT KEPT'}")
    sys.exit(broken)


if __name__ == "__main__":
    main()
