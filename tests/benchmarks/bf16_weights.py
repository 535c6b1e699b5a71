"""Weights kept in bf16 with stochastic rounding against float32 ones: the validation loss of the demo, seed by seed.

    python -m tests.benchmarks.bf16_weights --seeds 10

Trains the demo's dataset (`make demo` first) twice a seed, both computing in bf16 with the optimizer in the backward
pass, on the CPU as a GPU would, so that only the weights' dtype differs. Fails unless the mean validation loss of bf16
weights is within 1% of float32's.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from helpers.config import TrainConfig, configure
from helpers.core.files import read_json
from helpers.core.run import Run
from helpers.host.device import Device
from helpers.train import trainer

ROOT = Path(__file__).parent.parent.parent
ALLOWED = 0.01
NEVER = 1_000_000
BF16 = Device(torch.device("cpu"), "bf16", "sdpa", ("bf16 on a CPU, to measure it",))


def validation_loss(seed: int, weights_dtype: str, steps: int) -> tuple[float, float]:
    """Train the demo; return the base's validation loss and the last one."""
    config = configure(
        TrainConfig,
        base_model=str(ROOT / "assets/tiny-sd"),
        max_steps=steps,
        seed=seed,
        mixed_precision="bf16",
        optimizer_in_backward=True,
        weights_dtype=weights_dtype,
        save_every_steps=NEVER,
        validate_every_steps=NEVER,
        preview_every_steps=NEVER,
        tracker="none",
    )
    run = Run("demo")
    list(trainer.train(config, run))
    found = read_json(run.verdict)["validation_loss"]
    for made in (run.checkpoints, run.model):
        shutil.rmtree(made)
    for made in (run.verdict, run.train_log):
        made.unlink()
    return found["base"], found["last"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bf16_weights")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    dataset = ROOT / "runs/demo/dataset"
    if not dataset.is_dir():
        sys.exit("runs/demo/dataset is missing: run make demo first")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    trainer.pick_device = lambda *_settings: BF16  # a CPU would be given float32
    losses: dict[str, list[float]] = {"float32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("dataset", "config"):
            shutil.copytree(dataset.parent / name, Path(folder, "runs/demo", name))
        os.chdir(folder)
        for seed in range(args.seeds):
            for kind, found in losses.items():
                began = time.perf_counter()
                base, last = validation_loss(seed, kind, args.steps)
                found.append(last)
                took_s = time.perf_counter() - began
                print(f"seed {seed}, {kind}: {base:.4f} to {last:.4f}, {took_s:.0f} s", flush=True)
        os.chdir(ROOT)
    ratios = [b / f for f, b in zip(*losses.values(), strict=True)]
    apart = statistics.mean(losses["bf16"]) / statistics.mean(losses["float32"]) - 1
    print(
        f"bf16 weights: {apart:+.2%} of float32's mean validation loss, {args.seeds} seeds; a seed's own "
        f"{min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%}"
    )
    if abs(apart) > ALLOWED:
        sys.exit(f"more than {ALLOWED:.0%} apart")


if __name__ == "__main__":
    main()
