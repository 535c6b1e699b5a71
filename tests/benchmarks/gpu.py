"""What a GPU shows, in ten minutes of one: speed, memory, idle time, equal losses, drawing.

    python -m tests.benchmarks.gpu --minutes 8 --script .../train_text_to_image.py \\
        --lora-script .../train_text_to_image_lora.py --sd-scripts .../sd-scripts --sd-python .../bin/python

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
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS needs to be deterministic
NEVER = 1_000_000
WARM = 4  # steps left out: one runs as it is, one records
Row = dict[str, Any]


def settings(args: argparse.Namespace, **given: Any) -> Row:
    """Settings of a training that takes steps alone, at the size that is measured."""
    alone = {
        "run": "bench",
        "base_model": args.base,
        "allow_slow": True,
        "begin_again": True,  # another row has left its checkpoints
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
    from helpers.core.run import Run
    from helpers.host.device import pick_device
    from helpers.train.resources import refuse_too_large
    from helpers.train.trainer import train

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
    given |= {"optimizer": "adamw", "compile": False, "cap_gb": 0.0}
    measured = scripts.measure(
        argparse.Namespace(**(vars(args) | given)), Path.cwd(), "theirs", method
    )
    return {
        "images_per_s": measured["rate"],
        "gb": measured["gb"],
        "share_of_peak": measured["peak"],
    }


def sd_scripts(args: argparse.Namespace, method: str) -> Row:
    """sd-scripts' own trainer on the same weights and images: batch 4, latents cached, SDPA, checkpointing."""
    precision = "no" if args.small else "fp16"
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        command = [args.sd_python, "-m", "tests.benchmarks.sd_scripts", "--method", method]
        given = {
            "sd-scripts": args.sd_scripts,
            "base": args.base,
            "images": args.work / "runs/bench/dataset/train",
            "work": work,
            "resolution": args.resolution,
            "precision": precision,
            "steps": args.steps + WARM,
        }
        command += [word for name, value in given.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(
            command, cwd=scripts.ROOT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        return {"error": done.stderr[-1500:]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def equal_losses(args: argparse.Namespace, steps: int = 0, **given: Any) -> Row:
    """The largest relative difference of a captured training's losses from an eager one's, and of another eager one's.

    PyTorch's deterministic kernels alone: with the others two eager trainings differ as well.
    """
    import torch

    from helpers.config import TrainConfig, configure
    from helpers.core.run import Run
    from helpers.train.trainer import train

    torch.use_deterministic_algorithms(True, warn_only=True)
    found = {}
    for run, capture in (("eager", "off"), ("again", "off"), ("captured", "auto")):
        config = configure(TrainConfig, settings(args, capture=capture, **given))
        rows = train(config, Run("bench"))
        next(rows)
        found[run] = [next(rows).loss for _ in range(steps or 2 * args.steps)]
        rows.close()
    captured, again = (
        max(abs(a - b) / a for a, b in zip(found["eager"], found[other], strict=True))
        for other in ("captured", "again")
    )
    row = {"steps": len(found["eager"]), "largest_difference": captured}
    return row | {"of_eager_ones": again, "losses": found["captured"][-3:]}


def drawing(args: argparse.Namespace) -> Row:
    """Seconds of a picture: the pipeline's own default, 05's default, and that captured; and how far apart they are."""
    import numpy as np
    import torch

    from helpers.host.device import pick_device
    from helpers.models.capture import CapturedForward
    from helpers.models.pipeline import load_pipeline, sample_fast

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


def norms(args: argparse.Namespace) -> Row:
    """The largest relative errors of our group norm and of PyTorch's, output and gradients, against float64."""
    import torch
    from torch.nn import functional as F

    from helpers.train.group_norm import group_norm

    worst = {"ours": 0.0, "pytorch": 0.0}
    for n, c, h, w in ((4, 320, 64, 64), (1, 2560, 8, 8), (3, 960, 13, 7), (2, 640, 48, 88)):
        x = torch.randn(n, c, h, w, device="cuda").half().mul(3).add(1)
        x = x.to(memory_format=torch.channels_last)
        dy, weight, bias = torch.randn_like(x), *torch.randn(2, c, device="cuda").half()
        exact = _gradients(F.group_norm, x.double(), weight.double(), bias.double(), dy.double())
        for name, norm in (("ours", group_norm), ("pytorch", F.group_norm)):
            found = _gradients(norm, x, weight, bias, dy)
            errors = [(a.double() - b).norm() / b.norm() for a, b in zip(found, exact, strict=True)]
            worst[name] = max(worst[name], float(max(errors)))
    return worst


def _gradients(norm: Callable, x: Any, weight: Any, bias: Any, dy: Any) -> list[Any]:
    import torch

    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    y = norm(inputs[0], 32, inputs[1], inputs[2], 1e-5)
    return [y, *torch.autograd.grad(y, inputs, dy)]


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


def base(args: argparse.Namespace) -> Row:
    """Make the pictures and the base model, on the GPU where there is one."""
    import torch

    args.work.mkdir(parents=True, exist_ok=True)
    scripts.prepare(argparse.Namespace(**vars(args) | {"size": "tiny"}), args.work)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        scripts.make_full_size(args, args.work / "base")
    (args.work / "notebooks").symlink_to(scripts.ROOT / "notebooks")
    return {"versions": versions()}


def base_xl(args: argparse.Namespace) -> Row:
    """Make an SDXL in random weights in half precision, in full shapes where there is a GPU."""
    import torch

    from tests.bases import make_sdxl
    from tests.benchmarks.sdxl_memory import make_weights

    folder = Path(xl(args).base)
    if args.small:
        make_sdxl(folder)
    else:
        make_weights(folder, torch.float16, "cuda")
    return {"versions": versions()}


def xl(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments for SDXL at its own size."""
    given = {"base": str(args.work / "base-xl"), "size": "sdxl", "lora_script": args.xl_script}
    return argparse.Namespace(
        **vars(args) | given | {"resolution": 64 if args.small else 1024, "small": args.small}
    )


def rows(args: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """All that can be measured, by name, the most valuable first."""

    def preset(name: str, cap_gb: float, **given: Any) -> Callable[[], Row]:
        return lambda: training(args, cap_gb, preset=name, **given)

    big = {"method": "full", "mixed_precision": "bf16", "learning_rate": 1e-5}
    lora = SAME_WORK | {"method": "lora"}
    full = SAME_WORK | {"method": "full", "learning_rate": 1e-5}
    lean = {"optimizer": "adamw8bit", "optimizer_in_backward": True, "train_batch_size": 1}
    bf16 = {"mixed_precision": "bf16", "weights_dtype": "bf16"}
    sdxl = {
        "base-xl": lambda: base_xl(args),
        "lora-xl": lambda: training(xl(args), **lora),
        **({"theirs-xl": lambda: theirs(xl(args), "lora")} if args.xl_script else {}),
        "t4-xl": lambda: training(xl(args), 8.0, preset="t4-xl"),
        "l4-xl": lambda: training(xl(args), 22.0, preset="l4-xl"),
        "a100-xl": lambda: training(xl(args), 39.0, preset="a100-xl"),
    }
    sd = {f"sd-scripts-{m}": lambda m=m: sd_scripts(args, m) for m in ("full", "lora")}
    return {
        "base": lambda: base(args),
        "full": lambda: training(args, **full),
        "theirs-full": lambda: theirs(args, "full"),
        "lora": lambda: training(args, 6.0, **lora),
        "theirs-lora": lambda: theirs(args, "lora"),
        "full-b32": lambda: training(args, train_batch_size=32, **big),
        "drawing": lambda: drawing(args),
        "norms": lambda: norms(args),
        **(sd if args.sd_scripts else {}),
        **sdxl,
        "full-8bit": lambda: training(args, 14.0, optimizer="adamw8bit", **full),
        "full-7gb": lambda: training(args, 7.0, **full | lean),
        "full-5gb": lambda: training(args, 5.0, **full | lean | bf16),
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


def child(name: str) -> subprocess.Popen:
    """A process that measures a row; it loads the libraries, and begins once it reads a line."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--row", name, *sys.argv[1:]]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def measure(name: str, args: argparse.Namespace) -> None:
    """Measure a row in this process, and write it at once."""
    importlib.import_module("helpers.train.trainer")
    sys.stdin.readline()
    began = time.perf_counter()
    try:
        row = rows(args)[name]()
    except BaseException as error:  # a row that fails is a row too
        row = {"error": repr(error)[:1500]}
    row = {"row": name, "took_s": time.perf_counter() - began} | row
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


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
    parser.add_argument("--xl-script", help="diffusers' train_text_to_image_lora_sdxl.py")
    parser.add_argument("--sd-scripts", help="a checkout of kohya-ss/sd-scripts")
    parser.add_argument("--sd-python", default=sys.executable, help="of its own environment")
    parser.add_argument("--rows", default="", help="these alone, comma-separated")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="best in memory")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--channels", type=int, default=320, help="of the UNet's first block")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=14)
    return parser.parse_args()


def main() -> None:
    until = time.perf_counter() + 60 * parse().minutes
    args = parse()
    args.size = "sd15"
    args.out, args.work = args.out.resolve(), args.work.resolve()
    args.base = str(args.work / "base")
    for name in ("script", "lora_script", "xl_script", "sd_scripts"):
        if given := getattr(args, name):
            setattr(args, name, str(Path(given).resolve()))
    if args.row:
        import torch  # in a row's own process, while an earlier row is measured

        args.small = args.channels < 320 or not torch.cuda.is_available()
        if args.row != "base":
            os.chdir(args.work)
        measure(args.row, args)
        return
    wanted = [name for name in args.rows.split(",") if name] or list(rows(args))[1:]
    if not Path(args.base).is_dir():
        wanted = ["base", *wanted]
    following = None
    for name, later in zip(wanted, [*wanted[1:], ""], strict=True):
        if time.perf_counter() > until:
            break
        now = following or child(name)
        following = child(later) if later and name != "base" else None  # loads meanwhile
        now.communicate("\n")
    if following:
        following.kill()


if __name__ == "__main__":
    main()
