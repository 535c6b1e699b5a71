"""What 01 and 03 take, as their tables say: 1,000 pictures of 1080 px in a folder, taken in and made a dataset.

python -m tests.benchmarks.minutes
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.run import Run
from helpers.dataset.build import build, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.split import split
from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import random_scene
from helpers.scrape.ingest import ingest, list_items, verify_images

COUNT, SIDE_PX = 1000, 1080


def draw(folder: Path) -> None:
    """Watercolours as large as Instagram gives them, with their captions."""
    folder.mkdir()
    for i in range(COUNT):
        scene = random_scene(20_000_000 + i, held_out=None)
        picture = paint_watercolour(scene, 256).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:04d}.jpg", quality=90)
        (folder / f"{i:04d}.txt").write_text(scene.caption)


def scrape(run: Run, folder: Path) -> str:
    config = ScrapeConfig(run=run.name, source="folder", folder=str(folder))
    list(ingest(config, run, list_items(config, run)))
    return verify_images(run)


def make_dataset(run: Run) -> str:
    config = DatasetConfig(run=run.name)
    kept, left_out = curate(config, run)
    sides = split(kept, config.validation_share, config.seed)
    build(config, run, kept.assign(split=sides), left_out)
    return verify_dataset(run)


def say(what: str, act: Callable[[], str]) -> None:
    began = time.perf_counter()
    words = act()
    print(f"{what}: {time.perf_counter() - began:.0f} s ({words})", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        folder, run = Path("pictures"), Run("many")
        draw(folder)
        say("01", lambda: scrape(run, folder))
        caption = CaptionConfig(run=run.name)
        list(caption_images(caption, run, pending(caption, run)))
        say("03", lambda: make_dataset(run))


if __name__ == "__main__":
    main()
