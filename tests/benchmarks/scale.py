"""Time and memory of 01 to 03 with many files: a folder of pictures and captions, some refused.

python -m tests.benchmarks.scale 10000 20000

Each stage runs in a process of its own, as each notebook has a kernel. Memory is the process's peak.
"""

import argparse
import io
import multiprocessing.connection
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.caption.ledger import caption_images, pending, verify_captions
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.run import Run
from helpers.dataset.build import build, held_out, verify_dataset
from helpers.dataset.curate import curate
from helpers.dataset.split import split
from helpers.scrape.ingest import ingest, list_items, verify_images

SIDE_PX = 256
REFUSED = 0.1  # of the files are no pictures
RUN = "many"


def draw(folder: Path, count: int) -> None:
    """Pictures that are like no other, each with a caption."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        content = b"no picture"
        if i % round(1 / REFUSED):
            noise = np.random.default_rng(i).integers(0, 255, (9, 9, 3), np.uint8)
            buffer = io.BytesIO()
            image = Image.fromarray(noise).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
            image.save(buffer, "JPEG", quality=90)
            content = buffer.getvalue()
        (folder / f"{i:05d}.jpg").write_bytes(content)
        (folder / f"{i:05d}.txt").write_text(f"picture number {i}")


def list_source(folder: Path) -> str:
    config = ScrapeConfig(run=RUN, source="folder", folder=str(folder))
    return list_items(config, Run(RUN)).words


def scrape(folder: Path) -> str:
    config, run = ScrapeConfig(run=RUN, source="folder", folder=str(folder)), Run(RUN)
    offered = list_items(config, run)
    list(ingest(config, run, offered))
    return f"{offered.news}; {verify_images(run).partition(':')[0]}"


def caption(_: Path) -> str:
    config, run = CaptionConfig(run=RUN), Run(RUN)
    list(caption_images(config, run, pending(config, run)))
    return verify_captions(run)


def make_dataset(_: Path) -> str:
    config, run = DatasetConfig(run=RUN), Run(RUN)
    kept, left_out = curate(config, run)
    sides = split(kept, config.validation_share, config.seed, held_out(config, run))
    build(config, run, kept.assign(split=sides), left_out)
    return verify_dataset(run)


STAGES = {
    "01, to its first line": list_source,
    "01": scrape,
    "01 again": scrape,
    "02": caption,
    "03": make_dataset,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--only", nargs="*", default=STAGES)
    args = parser.parse_args()
    for count in args.counts:
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            draw(Path("pictures"), count)
            for name in args.only:
                say(f"{count} files, {name}", STAGES[name])
            os.chdir("/")


def say(what: str, stage: Callable[[Path], str]) -> None:
    """Run a stage in a fresh process; print what it took and what it says."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(stage, theirs))
    process.start()
    theirs.close()
    wall_s, cpu_s, peak_gb, words = ours.recv()
    process.join()
    print(f"{what}: {wall_s:.1f} s ({cpu_s:.1f} of CPU), {peak_gb:.2f} GB ({words})", flush=True)


def _measured(stage: Callable[[Path], str], answer: multiprocessing.connection.Connection) -> None:
    began = time.perf_counter()
    words = stage(Path("pictures"))
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer.send((time.perf_counter() - began, time.process_time(), peak_kb / 1e6, words))


if __name__ == "__main__":
    main()
