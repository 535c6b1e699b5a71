"""The same prompts at the same seeds, from the base model to the last step."""

import logging
from pathlib import Path

import torch
from PIL import Image

from helpers.config import TrainConfig
from helpers.core.files import on_disk, replacing_file
from helpers.core.run import Run
from helpers.figures.pictures import grid
from helpers.train.model import ModelComponents

log = logging.getLogger(__name__)


def draw_previews(
    components: ModelComponents, config: TrainConfig, prompts: list[str]
) -> list[Image.Image]:
    """One picture of each prompt, at a seed of its own."""
    seeds = range(config.preview_seed, config.preview_seed + len(prompts))
    return components.draw(config, prompts, [torch.Generator().manual_seed(seed) for seed in seeds])


def write_preview(
    run: Run, step: int, components: ModelComponents, config: TrainConfig, prompts: list[str]
) -> Path:
    """Draw the previews of a step into previews/step-NNNNNN.png."""
    images = draw_previews(components, config, prompts)
    cell_px = max(160, min(config.resolution_px, 256))
    with replacing_file(run.preview(step)) as beside:
        grid(
            images, columns=len(images) if len(images) <= 6 else 4, labels=prompts, cell_px=cell_px
        ).save(beside)
    return run.preview(step)


def set_aside_previews(run: Run) -> None:
    """Move an earlier training's previews into previews/before-N, for one that begins anew.

    Those of step 0 alone are of one that was stopped before its first checkpoint, and are drawn again.
    """
    if not any(path != run.preview(0) for path in run.preview_files()):
        return
    numbers = (n for n in range(1, 10_000) if not (run.previews / f"before-{n}").exists())
    aside = run.previews / f"before-{next(numbers)}"
    with on_disk("make", aside):
        aside.mkdir()
    for path in sorted(run.previews.glob("*.png")):
        with on_disk("rename", path):
            path.rename(aside / path.name)
    log.warning("the previews of an earlier training are in %s now", aside)
