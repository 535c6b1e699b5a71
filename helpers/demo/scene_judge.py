"""Measure how well a model draws held-out scenes: `python -m helpers.demo.scene_judge assets/tiny-sd`.

The judge is a small classifier of animal, colour, place and style. It is trained on drawn scenes only, not on samples,
and no training uses it.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.core.process import run_command
from helpers.demo.optimise import draw_scenes, optimise
from helpers.demo.scenes import HELD_OUT_PAIRS, JUDGE_SCENES_FROM, SUFFIX, Scene, random_scene
from helpers.demo.shapes import ANIMALS, COLOURS, PLACES
from helpers.figures.pictures import grid
from helpers.models.pipeline import load_pipeline, sample_fast

ANSWERS = {
    "animal": list(ANIMALS),
    "colour": list(COLOURS),
    "place": list(PLACES),
    "style": ["flat", "watercolour"],
}
COUNTS = [len(answers) for answers in ANSWERS.values()]
WEIGHTS = Path("build/judge.safetensors")


class Judge(nn.Module):
    """A CNN from images (N, 3, 64, 64) in -1..1 to logits (N, 20) of animal, colour, place and style."""

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for narrow, wide in itertools.pairwise((3, 32, 64, 96, 128)):
            for channels, stride in ((narrow, 2), (wide, 1)):
                convolution = nn.Conv2d(channels, wide, 3, stride, 1)
                layers += [convolution, nn.GroupNorm(8, wide), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, sum(COUNTS))]
        self.layers = nn.Sequential(*layers)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.layers(pictures)

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return {attribute: predicted class indices (N,)} for images in uint8 (N, 3, H, W)."""
        scores = torch.cat([self(_small(part)) for part in pixels.split(100)])
        parts = scores.split(COUNTS, dim=1)
        return {name: part.argmax(1) for name, part in zip(ANSWERS, parts, strict=True)}


def _small(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels.float() / 127.5 - 1, size=(64, 64), mode="area")


def make_labels(scenes: list[Scene], style: str) -> Tensor:
    """Return the class indices (N, 4) of each scene's animal, colour, place and style."""
    right = [(scene.animal.name, scene.animal.colour, scene.place, style) for scene in scenes]
    lists = ANSWERS.values()
    return torch.tensor([[*map(list.index, lists, answers)] for answers in right])


def train_judge(steps: int = 1500, flat: int = 6000, watercolour: int = 1200) -> Judge:
    """Train a Judge on drawn scenes, with noise and blur, so that it generalises to blurry samples."""
    torch.manual_seed(0)
    pictures, right = [], []
    for style, count, begin in (("flat", flat, 0), ("watercolour", watercolour, 500_000)):
        seeds = range(JUDGE_SCENES_FROM + begin, JUDGE_SCENES_FROM + begin + count)
        pictures.append(_small(draw_scenes(style, seeds, held_out=None)))
        right.append(make_labels([random_scene(seed, held_out=None) for seed in seeds], style))
    judge = Judge()
    losses = _losses(judge, torch.cat(pictures), torch.cat(right), flat)
    optimise([judge], losses, steps, 1e-3, 0.99, "judge")
    return judge.eval()


def _losses(judge: Judge, pictures: Tensor, right: Tensor, flat: int) -> Iterator[Tensor]:
    while True:
        styled = torch.randint(flat, len(pictures), (16,))
        picked = torch.cat([torch.randint(0, flat, (32,)), styled])
        seen = pictures[picked] + 0.08 * torch.rand(48, 1, 1, 1) * torch.randn(48, 3, 64, 64)
        if torch.rand(()) < 0.5:
            seen = F.interpolate(F.avg_pool2d(seen, 2), scale_factor=2, mode="bilinear")
        parts = judge(seen).split(COUNTS, dim=1)
        yield sum(F.cross_entropy(part, right[picked, i]) for i, part in enumerate(parts))


def load_judge() -> Judge:
    """Load the Judge from the file WEIGHTS, or train and save a Judge if the file is missing."""
    if not WEIGHTS.is_file():
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        save_file(train_judge().state_dict(), WEIGHTS)
    judge = Judge().eval()
    judge.load_state_dict(load_file(WEIGHTS))
    return judge


def held_out_scenes(count: int) -> list[Scene]:
    """Return `count` scenes of the held-out (colour, animal) pairs, each pair equally often."""
    seeds = itertools.count(JUDGE_SCENES_FROM + 900_001)
    scenes = (random_scene(seed, held_out=True) for seed in seeds)
    pairs = itertools.islice(itertools.cycle(HELD_OUT_PAIRS), count)
    return [next(scene for scene in scenes if scene.animal == pair) for pair in pairs]


def sample(model: str, prompts: list[str], guidance_scale: float, steps: int) -> list[Image.Image]:
    """Generate an image for each prompt with the pipeline `model`, each from a different seed."""
    pipeline = sample_fast(load_pipeline(model, torch.float32))
    settings = {"guidance_scale": guidance_scale, "num_inference_steps": steps}
    images = []
    for start in range(0, len(prompts), 12):
        some = prompts[start : start + 12]
        seeds = [torch.Generator().manual_seed(7000 + start + i) for i in range(len(some))]
        images += pipeline(some, generator=seeds, **settings).images
    return images


def pixels_of(images: list[Image.Image]) -> Tensor:
    """Stack images of equal size into a uint8 tensor (N, 3, H, W)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def accuracies(judge: Judge, pixels: Tensor, scenes: list[Scene], style: str) -> dict[str, float]:
    """Return the judge's accuracy on each attribute of images drawn from `scenes`."""
    right, named = make_labels(scenes, style), judge.predict(pixels)
    hits = [named[name] == right[:, i] for i, name in enumerate(ANSWERS)]
    return {name: float(hit.float().mean()) for name, hit in zip(ANSWERS, hits, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder in diffusers layout")
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--suffix", action="store_true", help="ask for watercolours")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--grid", type=Path, help="where to save a grid of the samples")
    args = parser.parse_args()
    judge, scenes = load_judge(), held_out_scenes(args.samples)
    style = "watercolour" if args.suffix else "flat"
    seeds = range(JUDGE_SCENES_FROM + 800_000, JUDGE_SCENES_FROM + 800_200)
    drawn = [random_scene(seed, held_out=None) for seed in seeds]
    figures = {"drawn": accuracies(judge, draw_scenes(style, seeds, held_out=None), drawn, style)}
    prompts = [scene.caption + (SUFFIX if args.suffix else "") for scene in scenes]
    images = sample(args.model, prompts, args.guidance_scale, args.steps)
    figures["samples"] = accuracies(judge, pixels_of(images), scenes, style)
    print(json.dumps(figures, indent=2))
    if args.grid:
        grid(images[:48], 12, [scene.caption for scene in scenes[:48]], cell_px=128).save(args.grid)


if __name__ == "__main__":
    run_command(main)
