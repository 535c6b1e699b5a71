"""How many held-out images the alarm for copies takes: false alarms among drawings that are no copies.

`python -m tests.benchmarks.copies`, a minute on a CPU.
"""

import numpy as np
from PIL import Image

from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import random_scene
from helpers.inference.judge.copies import CopyFinder, copy_threshold

DRAWS = 500


def paintings(first: int, count: int) -> list[Image.Image]:
    return [paint_watercolour(random_scene(first + i), 128) for i in range(count)]


def main() -> None:
    train, held_out = paintings(8_000_000, 60), paintings(8_100_000, 60)
    finder = CopyFinder(train, held_out)
    held = [pair.likeness for pair in finder.nearest(held_out)]
    unseen = np.array([pair.likeness for pair in finder.nearest(paintings(8_200_000, 150))])
    rng = np.random.default_rng(0)
    print("held out | false alarms | over 5% of a run's samples")
    for count in (1, 2, 3, 5, 8, 10, 15, 20, 30):
        picked = (rng.choice(held, count, replace=False) for _ in range(DRAWS))
        shares = np.array([(unseen > copy_threshold(list(some))).mean() for some in picked])
        print(f"{count:8d} | {shares.mean():12.1%} | in {(shares > 0.05).mean():.0%} of runs")


if __name__ == "__main__":
    main()
