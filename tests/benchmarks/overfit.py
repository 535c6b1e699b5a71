"""The verdict on real trainings of the tiny base: few pictures, which it learns by heart, and many, which it does not.

    python -m tests.benchmarks.overfit --seeds 20

Each seed draws its own watercolours and trains by helpers.train twice, on 8 pictures and on 240, at 64 px so that all
of it takes under an hour of two cores. `called` is the step since which the verdict says overfitting.
"""

import argparse
import os
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from helpers.config import DatasetConfig, ScrapeConfig, TrainConfig, configure
from helpers.core.files import read_json
from helpers.core.run import Run
from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import random_scene

ROOT = Path(__file__).parent.parent.parent
FEW, MANY, HELD_OUT, EVERY = 8, 240, 24, 20


def prepare(name: str, count: int, seed: int) -> Run:
    """A run as far as 03: `count` pictures to train on and HELD_OUT that are not."""
    from helpers.caption.ledger import caption_images, pending
    from helpers.config import CaptionConfig
    from helpers.dataset.build import build
    from helpers.dataset.curate import curate
    from helpers.scrape.ingest import find, take

    folder = Path("pictures") / name
    folder.mkdir(parents=True)
    for i in range(count + HELD_OUT):
        scene = random_scene(10_000_000 + 1000 * seed + i, held_out=None)
        paint_watercolour(scene, 64).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(scene.caption)
    run, scrape = Run(name), ScrapeConfig(run=name, source="folder", folder=str(folder))
    list(take(scrape, run, find(scrape, run)))
    caption = CaptionConfig(run=name)
    list(caption_images(caption, run, pending(caption, run)))
    config = DatasetConfig(run=name, min_side_px=32, max_hash_bits=0, min_likeness=1.0)
    kept, left_out = curate(config, run)
    split = ["train"] * (len(kept) - HELD_OUT) + ["validation"] * HELD_OUT
    build(config, run, kept.assign(split=split), left_out)
    return run


def settings(run: Run, steps: int, seed: int) -> TrainConfig:
    never = 1_000_000
    given = {
        "run": run.name,
        "base_model": str(ROOT / "assets/tiny-sd"),
        "resolution_px": 64,
        "learning_rate": 5e-4,
        "lr_scheduler": "constant",
        "prior_share": 0.0,
        "max_steps": steps,
        "validate_every_steps": EVERY,
        "validation_pairs": 256,
        "save_every_steps": never,
        "preview_every_steps": never,
        "num_inference_steps": 1,
        "tracker": "none",
        "seed": seed,
    }
    return configure(TrainConfig, given)


def outcome(run: Run, config: TrainConfig) -> tuple[str, list[tuple[int, float]]]:
    """The verdict's words, and the validation curve."""
    from helpers.core.records import read_log
    from helpers.train.trainer import train

    list(train(config, run))
    rows = [row for row in read_log(run.train_log) if "held_out_loss" in row]
    return read_json(run.verdict)["words"], [(int(r["step"]), r["held_out_loss"]) for r in rows]


def judge_seed(seed: int, steps: int) -> tuple[bool, bool, str]:
    """Whether the few are called overfit within an interval of the minimum, the many not, and a line of figures."""
    few = prepare(f"few-{seed}", FEW, seed)
    words, curve = outcome(few, replace(settings(few, steps, seed), train_batch_size=4))
    minimum = min(curve, key=lambda point: point[1])[0]
    called = re.search(r"overfitting since step (\d+)", words)
    is_called = called is not None and abs(int(called[1]) - minimum) <= EVERY
    many = prepare(f"many-{seed}", MANY, seed)
    clean, _ = outcome(many, settings(many, steps, seed))
    is_clean = not clean.startswith("overfitting")
    return is_called, is_clean, f"few: {words} (minimum at {minimum}); many: {clean}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overfit")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    right = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(args.first, args.first + args.seeds):
            is_called, is_clean, line = judge_seed(seed, args.steps)
            right[0], right[1] = right[0] + is_called, right[1] + is_clean
            print(f"seed {seed}: {line}", flush=True)
        os.chdir(ROOT)
    print(
        f"few called rightly {right[0]} of {args.seeds}, many not called {right[1]} of {args.seeds}"
    )
    if right != [args.seeds] * 2:
        sys.exit("a verdict was wrong")


if __name__ == "__main__":
    main()
