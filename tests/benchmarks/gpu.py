"""What a GPU shows, in ten minutes of one: speed, memory, idle time, equal losses, drawing.

    python -m tests.benchmarks.gpu --minutes 8 --script .../train_text_to_image.py \\
        --lora-script .../train_text_to_image_lora.py

Stable Diffusion v1-5's shapes in random weights, made in a folder in memory (`--work`), so nothing is downloaded. The
most valuable rows come first; each runs in a process of its own, so that a failure loses one row, and is written to
`--out` as soon as it is there. `--rows` picks some, `--channels 32 --resolution 64` makes it small enough for a dry run
on a CPU. The table at the end is for results.md.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import train as scripts

os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
    "1"  # so that a look for a GPU leaves CUDA alone before a fork
)
NEVER = 1_000_000
WARM = 4  # steps left out: one runs as it is, one records
Row = dict[str, Any]


def settings(args: argparse.Namespace, **given: Any) -> Row:
    """Settings of a training that takes steps alone, at the size that is measured."""
    alone = {
        "run": "bench",
        "base_model": args.base,
        "allow_slow": True,
        "max_steps": 100_000,
        "save_every_steps": NEVER,
        "save_every_minutes": 0.0,
        "validate_every_steps": NEVER,
        "preview_every_steps": NEVER,
        "num_inference_steps": 1,
        "validation_pairs": 4,
        "prior_share": 0.0,
        "resolution_px": args.resolution,
    }
    return alone | given | ({"mixed_precision": "no", "optimizer": "adamw"} if args.small else {})


SAME_WORK = {  # as the scripts train: rank 4 in attention, a constant rate, no weights, no dropped captions
    "train_batch_size": 4,
    "rank": 4,
    "lora_targets": "attention",
    "mixed_precision": "fp16",
    "lr_scheduler": "constant",
    "snr_gamma": 0.0,
    "caption_dropout": 0.0,
    "gradient_checkpointing": True,
    "learning_rate": 1e-4,
}


def training(args: argparse.Namespace, cap_gb: float = 0, **given: Any) -> Row:
    """A training's images/s, memory against what the plan counts, share of the time that the GPU idles, and start."""
    import torch

    from helpers.config import TrainConfig, configure
    from helpers.device import pick_device
    from helpers.run import Run
    from helpers.train.loop import train
    from helpers.train.plan import refuse_too_large

    cap(cap_gb)
    config, run = configure(TrainConfig, settings(args, **given)), Run("bench")
    counted = refuse_too_large(config, run, pick_device(config.mixed_precision, config.attention))
    began, stamps, losses = time.perf_counter(), [], []
    steps = train(config, run)
    next(steps)
    start_s = time.perf_counter() - began
    for step in steps:
        stamps.append(time.perf_counter())
        losses.append(step.loss)
        if len(stamps) == 1 and torch.cuda.is_available():
            start_gb = torch.cuda.max_memory_allocated() / 1e9
        if len(stamps) == args.steps:
            break
    images = config.train_batch_size * config.gradient_accumulation_steps
    rate = images * (len(stamps) - 1 - WARM) / (stamps[-1] - stamps[WARM])
    args.method = config.method
    args.precision = pick_device(config.mixed_precision).precision
    row = {"images_per_s": rate, "start_s": start_s, "losses": losses[:8]}
    row["share_of_peak"] = rate * scripts.image_flops(args) / scripts.matrix_flops_per_s(args)
    if torch.cuda.is_available():
        row |= {"gb": torch.cuda.max_memory_allocated() / 1e9, "start_gb": start_gb}
        row |= {"reserved_gb": torch.cuda.max_memory_reserved() / 1e9}
        row |= {"planned_gb": counted.memory_gb, "idle": idle_share(lambda: next(steps))}
    steps.close()
    return row


def cap(gb: float) -> None:
    """Let this process have no more of the GPU's memory, as on a smaller card."""
    import torch

    if gb and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(gb * 1e9 / total)


def idle_share(act: Callable[[], object], times: int = 3) -> float:
    """The share of the time in which no kernel runs on the GPU, by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(times):
            act()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - spans[0][0])


def theirs(args: argparse.Namespace, method: str) -> Row:
    """diffusers' own script, on the same weights, images, precision and effective batch."""
    given = {"method": method, "precision": "no" if args.small else "fp16", "checkpointing": True}
    given |= {"optimizer": "adamw", "compile": False, "cap_gb": 0.0, "size": "sd15"}
    measured = scripts.measure(
        argparse.Namespace(**(vars(args) | given)), Path.cwd(), "theirs", method
    )
    return {
        "images_per_s": measured["rate"],
        "gb": measured["gb"],
        "share_of_peak": measured["peak"],
    }


def equal_losses(args: argparse.Namespace, steps: int = 0, **given: Any) -> Row:
    """The largest relative difference of a captured training's losses from an eager one's."""
    from helpers.config import TrainConfig, configure
    from helpers.run import Run
    from helpers.train.loop import train

    found = {}
    for capture in ("off", "auto"):
        config = configure(TrainConfig, settings(args, capture=capture, **given))
        rows = train(config, Run("bench"))
        next(rows)
        found[capture] = [next(rows).loss for _ in range(steps or 2 * args.steps)]
        rows.close()
    pairs = list(zip(found["off"], found["auto"], strict=True))
    return {
        "steps": len(pairs),
        "largest_difference": max(abs(a - b) / a for a, b in pairs),
        "losses": found["auto"][-3:],
    }


def drawing(args: argparse.Namespace) -> Row:
    """Seconds of a picture: the pipeline's own default, 05's default, and that captured; and how far apart they are."""
    import numpy as np
    import torch

    from helpers.capture import CapturedForward
    from helpers.device import load_pipeline, pick_device, sample_fast

    device = pick_device("no" if args.small else "fp16")
    pipeline = load_pipeline(args.base, device.dtype).to(device.device)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": args.resolution, "width": args.resolution, "output_type": "np"}

    def timed(times: int = 3, **given: Any) -> tuple[float, Any]:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            source = torch.Generator().manual_seed(0)
            image = pipeline("a cat", generator=source, **size, **given).images[0]
            took.append(time.perf_counter() - began)
        return min(took[1:]), image

    default_s, _ = timed(num_inference_steps=50)
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    sample_fast(pipeline)
    eager_s, eager = timed(num_inference_steps=16, guidance_scale=4.0)
    row = {"default_s": default_s, "eager_s": eager_s}
    if device.captures:
        with CapturedForward(pipeline.unet).installed():
            captured_s, captured = timed(num_inference_steps=16, guidance_scale=4.0)
        row |= {"captured_s": captured_s, "share_of_default": captured_s / default_s}
        row |= {"largest_difference": float(np.abs(captured - eager).max())}
    return row


def notebooks(args: argparse.Namespace) -> Row:
    """04 and 05 by papermill on the full-size base, as a preset has them."""
    short = {"base_model": args.base, "max_steps": 12, "resolution_px": args.resolution}
    few = {"more": {"judged_samples": 8, "probed_captions": 4}}
    told: Row = {}
    for stage, given in (("04", short | {"preset": "t4"}), ("05", few)):
        words = [word for name, value in given.items() for word in ("-p", name, str(value))]
        command = [sys.executable, "-m", "helpers.batch", "bench", "--only", stage, *words]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).strip()
        told |= {f"{stage}_s": time.perf_counter() - began, f"{stage}_said": said[-600:]}
        if done.returncode:
            return told | {"error": stage}
    return told


def base(args: argparse.Namespace, work: Path) -> Row:
    """Make the pictures and the base model, on the GPU where there is one."""
    import torch

    scripts.prepare(argparse.Namespace(**vars(args) | {"size": "tiny"}), work)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        scripts.make_full_size(args, work / "base")
    return {}


def rows(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """All that can be measured, by name, the most valuable first."""

    def preset(name: str, cap_gb: float, **given: Any) -> Callable[[], Row]:
        return lambda: training(args, cap_gb, preset=name, **given)

    big = {"method": "full", "mixed_precision": "bf16", "learning_rate": 1e-5}
    lora = SAME_WORK | {"method": "lora"}
    full = SAME_WORK | {"method": "full", "learning_rate": 1e-5}
    return {
        "full": lambda: training(args, **full),
        "theirs-full": lambda: theirs(args, "full"),
        "lora": lambda: training(args, 6.0, **lora),
        "theirs-lora": lambda: theirs(args, "lora"),
        "full-b32": lambda: training(args, train_batch_size=32, **big),
        "drawing": lambda: drawing(args),
        "full-8bit": lambda: training(args, 14.0, optimizer="adamw8bit", **full),
        "equal-full": lambda: equal_losses(args, **full),
        "equal-lora": lambda: equal_losses(
            args, **lora | {"gradient_accumulation_steps": 2, "train_batch_size": 2}
        ),
        "t4": preset("t4", 14.5),
        "t4-full": preset("t4-full", 14.5),
        "l4": preset("l4", 22.0),
        "a100": preset("a100", 39.0),
        "notebooks": lambda: notebooks(args),
        "full-eager": lambda: training(args, capture="off", **full),
        "full-b32-compile": lambda: training(args, train_batch_size=32, torch_compile=True, **big),
        "lora-compile": lambda: training(args, torch_compile=True, **lora),
    }


def in_a_process(measure: Callable[[], Row], out: Path, name: str) -> None:
    """Measure in a child, which takes what was imported along, and write its row at once."""
    child = os.fork()
    if child == 0:
        began = time.perf_counter()
        try:
            row = measure()
        except BaseException as error:  # a row that fails is a row too
            row = {"error": repr(error)[:1500]}
        row = {"row": name, "took_s": time.perf_counter() - began} | row
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        os._exit(0)
    os.waitpid(child, 0)


def versions() -> str:
    """The card, the date and the libraries."""
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{card}, {scripts.versions()}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="no row begins after them")
    parser.add_argument("--script", help="diffusers' train_text_to_image.py")
    parser.add_argument("--lora-script", help="diffusers' train_text_to_image_lora.py")
    parser.add_argument("--rows", default="", help="these alone, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--work", type=Path, help="a folder to work in, best in memory")
    parser.add_argument("--channels", type=int, default=320, help="of the UNet's first block")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=14)
    return parser.parse_args()


def main() -> None:
    until = time.perf_counter() + 60 * parse().minutes
    args = parse()
    args.small, args.size, args.base = args.channels < 320, "sd15", ""
    args.out = args.out.resolve()
    for name in ("script", "lora_script"):
        if given := getattr(args, name):
            setattr(args, name, str(Path(given).resolve()))
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    importlib.import_module("helpers.train.loop")  # once, before the rows' processes part
    if not (work / "base").is_dir():
        in_a_process(lambda: base(args, work), args.out, "base")
        (work / "notebooks").symlink_to(scripts.ROOT / "notebooks")
    os.chdir(work)
    args.base = str(work / "base")
    wanted = [name for name in args.rows.split(",") if name] or list(rows(args))
    for name in wanted:
        if time.perf_counter() < until:
            in_a_process(rows(args)[name], args.out, name)
    in_a_process(lambda: {"versions": versions()}, args.out, "versions")


if __name__ == "__main__":
    main()
