"""What the mirror costs a training when Drive is slow: `python -m tests.benchmarks.mirror`.

The demo's model is trained in pairs, alternated, with the mirror on a Drive of 1 MB/s both ways and without one. Its
whole UNet with its optimizer's state is saved so often that an upload never ends before the next checkpoint
comes: more than any real training asks, where a T4's LoRA saves 20 MB every few minutes. Steps per second
are told by the clock, which wants a quiet machine, and by the processor time of the whole process, which does not.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from helpers.config import TrainConfig, configure
from helpers.core.run import Run
from helpers.host import here
from helpers.host.interface import FOLDER
from helpers.mirror import sync
from helpers.mirror.drive import Drive
from helpers.train.trainer import train
from tests.conftest import make_dataset, photograph
from tests.drive import mounted

BYTES_PER_S, MOST_LOST = 1_000_000, 0.05
ROOT = Path(__file__).parent.parent.parent


class SlowDrive(Drive):
    """A folder that gives and takes so many bytes a second; `moved` counts them."""

    moved, over = 0, False

    def _slowly(self, chunks: Iterable[bytes]):
        for chunk in chunks:
            if self.over:
                raise OSError("the measurement is over")
            time.sleep(len(chunk) / BYTES_PER_S)
            self.moved += len(chunk)
            yield chunk

    def read(self, name):
        return self._slowly(super().read(name))

    def write(self, name, chunks):
        super().write(name, self._slowly(chunks))


def settings(steps: int, save_every: int) -> TrainConfig:
    never = 1_000_000
    given = {
        "run": "bench",
        "preset": "demo",
        "base_model": str(ROOT / "assets/tiny-sd"),
        "max_steps": steps,
        "save_every_steps": save_every,
        "validate_every_steps": never,
        "preview_every_steps": never,
        "num_inference_steps": 1,
        "prior_share": 0.0,
        "tracker": "none",
    }
    return configure(TrainConfig, given)


def measure(config: TrainConfig, mirrored: bool) -> tuple[float, float, float]:
    """Train; (seconds by the clock and of the processor for all steps but the first, MB moved meanwhile)."""
    shutil.rmtree("runs/bench", ignore_errors=True)
    shutil.copytree("prepared", "runs/bench")
    shutil.rmtree("drive", ignore_errors=True)
    Path("drive").mkdir()
    drive = SlowDrive(Path("drive"), f"{FOLDER}/bench")
    sync._mirrors.clear()
    here.MIRROR = mounted(Path("drive" if mirrored else "no drive"))
    sync.Drive = lambda root, folder: drive
    steps = train(config, Run("bench"))
    while next(steps).step < 1:
        pass
    began = time.perf_counter(), time.process_time()
    for step in steps:
        if step.step == config.max_steps - 1:  # after the last the model is exported
            break
    ended = time.perf_counter(), time.process_time()
    moved = drive.moved
    steps.close()
    drive.over = True
    return ended[0] - began[0], ended[1] - began[1], moved / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mirror")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--save-every", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for i in range(24):
            path = photograph(Path(f"in/{i}.jpg"), i)
            path.with_suffix(".txt").write_text(f"thing {i}")
        shutil.copytree(make_dataset("bench", Path("in")).folder, "prepared")
        config = settings(args.steps, args.save_every)
        measure(settings(3, 1), mirrored=True)  # warms everything up
        pairs = [(measure(config, False), measure(config, True)) for _ in range(args.pairs)]
        os.chdir(ROOT)
    wall, processor = (
        statistics.median(without[k] / with_[k] for without, with_ in pairs) for k in (0, 1)
    )
    moved = statistics.median(with_[2] for _, with_ in pairs)
    rate = (args.steps - 2) / statistics.median(without[0] for without, _ in pairs)
    print(
        f"{rate:.2f} steps/s without a mirror; with one on a Drive of 1 MB/s (it moved {moved:.0f} MB meanwhile) "
        f"{wall:.1%} of that by the clock, {processor:.1%} by processor time"
    )
    if wall < 1 - MOST_LOST:
        sys.exit(f"the mirror costs more than {MOST_LOST:.0%} of the steps per second")


if __name__ == "__main__":
    main()
