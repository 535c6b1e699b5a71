"""Draw preview images during training, always of the same prompts at the same seeds."""

import logging
from itertools import count
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
    """Draw an image per prompt, and save all as a grid in previews/step-NNNNNN.png; return the path."""
    images = draw_previews(components, config, prompts)
    cell_px = max(160, min(config.resolution_px, 256))
    columns = len(images) if len(images) <= 6 else 4
    with replacing_file(run.preview(step)) as tmp_path:
        grid(images, columns=columns, labels=prompts, cell_px=cell_px).save(tmp_path)
    return run.preview(step)


def archive_previews(run: Run) -> None:
    """Move an earlier training's previews to previews/before-N, unless step 0's is the only one."""
    if not any(path != run.preview(0) for path in run.preview_files()):
        return
    paths = (run.previews / f"before-{number}" for number in count(1))
    backup_path = next(path for path in paths if not path.exists())
    with on_disk("make", backup_path):
        backup_path.mkdir()
    for path in sorted(run.previews.glob("*.png")):
        with on_disk("rename", path):
            path.rename(backup_path / path.name)
    log.warning("the previews of an earlier training are now in %s", backup_path)
