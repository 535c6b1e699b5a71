"""Draw preview images during training, always of the same prompts at the same seeds."""

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
    """Draw one image per prompt, each from a fixed seed of its own."""
    seeds = range(config.preview_seed, config.preview_seed + len(prompts))
    return components.draw(config, prompts, [torch.Generator().manual_seed(seed) for seed in seeds])


def write_preview(
    run: Run, step: int, components: ModelComponents, config: TrainConfig, prompts: list[str]
) -> Path:
    """Draw an image per prompt, save the images as one grid, previews/step-NNNNNN.png, and return the file's path."""
    images = draw_previews(components, config, prompts)
    cell_px = max(160, min(config.resolution_px, 256))
    columns = len(images) if len(images) <= 6 else 4
    with replacing_file(run.preview(step)) as tmp_path:
        grid(images, columns=columns, labels=prompts, cell_px=cell_px).save(tmp_path)
    return run.preview(step)


def archive_previews(run: Run) -> None:
    """Move an earlier training's previews to previews/before-N, so that a new training can begin at step 0.

    A preview of step 0 alone stays: its training was stopped before the first checkpoint, and draws it again.
    """
    if not any(path != run.preview(0) for path in run.preview_files()):
        return
    numbers = (n for n in range(1, 10_000) if not (run.previews / f"before-{n}").exists())
    backup_path = run.previews / f"before-{next(numbers)}"
    with on_disk("make", backup_path):
        backup_path.mkdir()
    for path in sorted(run.previews.glob("*.png")):
        with on_disk("rename", path):
            path.rename(backup_path / path.name)
    log.warning("the previews of an earlier training are now in %s", backup_path)
