"""What a light LoRA and a speed LoRA keep of the demo's style: `python -m tests.benchmarks.light [--steps 4]`.

On runs/demo as `make demo` left it: the curve of style gain by rank of the LoRA that SVD makes of the full model, and
the style gain and time of drawing in four steps by assets/tiny-sd-lcm, by the run's own judge at the same prompts and
seeds. Seconds are of processor time, of pictures drawn by turns, so that a busy machine does not decide. Fails where a
promise is not kept.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL import Image

from helpers.core.run import Run
from helpers.demo.scene_judge import accuracies, held_out_scenes, load_judge, pixels_of
from helpers.inference.draw.sampler import Request, Sampler, make_config
from helpers.inference.draw.weights import LIGHT
from helpers.inference.judge.groups import Groups, Interval
from helpers.inference.judge.judgement import draw_groups, judged_requests, style_gain_of
from tests.benchmarks.sampling import alternate

RANKS = (4, 8, 16, 32, 64)
LEAST_GAIN, MOST_TIME, AT_RANK = 0.90, 0.30, 64
SCENES = 48  # that the judge of helpers/demo names, which no training saw


def draw(sampler: Sampler, requests: list[Request], some: list[int]) -> list[Image.Image]:
    return sampler.draw([requests[i] for i in some])


def row(name: str, gain: Interval, full: Interval) -> float:
    share = gain.value / full.value
    print(f"| {name} | {gain.value:.3f} ({gain.low:.2f} to {gain.high:.2f}) | {share:.0%} |")
    return share


def light_curve(run: Run, more: dict, sampler: Sampler, groups: Groups, full: Interval) -> float:
    """Print a row for each rank; the share of the full model's style gain at AT_RANK."""
    shares = {}
    for rank in RANKS:
        config = make_config(run, more | {"lora_rank": rank})
        light = sampler.light_lora(config)
        requests = [replace(r, model=LIGHT) for r in judged_requests(config, sampler)]
        gain = style_gain_of(groups, sampler.draw(requests))
        name = f"rank {rank}, {light.size_mb:.1f} MB, {light.kept:.0%} kept, {light.left_out:.1%} outside"
        shares[rank] = row(name, gain, full)
    return shares[AT_RANK]


def speed(
    run: Run, more: dict, sampler: Sampler, groups: Groups, full: Interval
) -> tuple[float, float]:
    """Print the row of drawing fast; its share of the full style gain, and of the time."""
    config = make_config(run, more)
    loaded = sampler.use_speed_lora(config)
    requests = judged_requests(config, sampler)
    fast = [replace(r, **loaded.settings) for r in requests]
    share = row(str(loaded), style_gain_of(groups, sampler.draw(fast)), full)
    without = [replace(r, num_inference_steps=loaded.steps) for r in requests]
    row(f"{loaded.steps} steps without it", style_gain_of(groups, sampler.draw(without)), full)
    scenes = held_out_scenes(SCENES)
    first = [
        replace(requests[0], prompt=sampler.styled(scene.caption), seed=7000 + i)
        for i, scene in enumerate(scenes)
    ]
    changes = {
        "all steps": {},
        "fast": loaded.settings,
        "as few without it": {"num_inference_steps": loaded.steps},
    }
    asked = [[replace(r, **change) for r in first] for change in changes.values()]
    ways: list[Callable] = [partial(draw, sampler, requests) for requests in asked]
    for way in ways:
        way([0])
    images, seconds = alternate(ways, SCENES, 16)
    judge = load_judge()
    for name, drawn, spent in zip(changes, images, seconds, strict=True):
        right = accuracies(judge, pixels_of(drawn), scenes, "watercolour")
        named = ", ".join(f"{what} {value:.0%}" for what, value in right.items())
        print(f"{name}: {spent / SCENES:.2f} s a picture, {spent / seconds[0]:.0%}; right: {named}")
    return share, seconds[1] / seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="demo")
    parser.add_argument("--lora", default="assets/tiny-sd-lcm")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--scheduler", default="auto")
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--only", choices=("speed", "light"), help="one of both")
    args = parser.parse_args()
    run = Run(args.run)
    more = {"judged_samples": args.samples, "probed_captions": 0, "speed_lora": args.lora}
    more |= {"speed_steps": args.steps, "speed_scheduler": args.scheduler}
    more |= {"speed_weight": args.weight}
    sampler = Sampler(run)
    groups = draw_groups(make_config(run, more), sampler)
    full = style_gain_of(groups, groups.tuned)
    print("| drawn by | style gain | of the full model's |\n|---|---|---|")
    row("the full model", full, full)
    broken = []
    if args.only != "speed" and light_curve(run, more, sampler, groups, full) < LEAST_GAIN:
        broken.append(f"rank {AT_RANK} keeps {LEAST_GAIN:.0%} of the style gain")
    if args.only != "light":
        share, ratio = speed(run, more, sampler, groups, full)
        broken += [f"{LEAST_GAIN:.0%} of the style gain when fast"] * (share < LEAST_GAIN)
        broken += [f"{MOST_TIME:.0%} of the time when fast"] * (ratio > MOST_TIME)
    if broken:
        sys.exit(f"not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
