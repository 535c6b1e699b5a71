"""Ours against diffusers' own scripts, on the same weights, images, resolution, precision and effective batch.

    python -m tests.benchmarks.train --script .../train_text_to_image.py --lora-script .../train_text_to_image_lora.py

The scripts are huggingface/diffusers' examples/text_to_image; whoever runs this fetches them. Each runs as a user
would, batch 1 x 4 for them and a true batch of 4 for us, in alternated pairs; a side's rate leaves its first steps
out. `--size sd15` makes Stable Diffusion v1-5's configuration in random weights, for a GPU; `--channels 32` makes
that small enough for a dry run on a CPU.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WARM, BATCH = 5, 4
TARGETS = {  # images/s, as a multiple of theirs
    ("tiny", "full"): 2.5,
    ("tiny", "lora"): 2.9,
    ("sd15", "full"): 2.0,
    ("sd15", "lora"): 2.0,
}
MOST_MEMORY = 0.6  # of theirs, on a GPU


def ours(args: argparse.Namespace) -> list[float]:
    """Train by helpers.train and return the times at which steps ended."""
    from helpers.config import TrainConfig, configure
    from helpers.core.run import Run
    from helpers.train.trainer import train

    never = 1_000_000
    more = {
        "mixed_precision": args.precision,
        "lora_targets": "attention",
        "lr_scheduler": "constant",
        "snr_gamma": 0.0,
        "caption_dropout": 0.0,
        "prior_share": 0.0,
        "gradient_checkpointing": args.checkpointing,
        "optimizer": args.optimizer,
        "torch_compile": args.compile,
        "save_every_steps": never,
        "validate_every_steps": never,
        "preview_every_steps": never,
        "num_inference_steps": 1,
        "allow_slow": True,
    }
    size = {"resolution_px": args.resolution, "train_batch_size": BATCH, "rank": 4}
    given = {"run": "bench", "base_model": args.base, "method": args.method, **size, **more}
    config = configure(TrainConfig, given, max_steps=args.steps, learning_rate=1e-4)
    return [time.perf_counter() for step in train(config, Run("bench")) if step.step]


def theirs(args: argparse.Namespace) -> list[float]:
    """Run diffusers' script as it is, but for torchvision where that is not installed, and note its steps."""
    import importlib.util

    stamps = note_steps()
    source = Path(args.script).read_text()
    if importlib.util.find_spec("torchvision") is None:
        ours = "from tests.benchmarks import transforms"
        source = source.replace("from torchvision import transforms", ours)
        ours = "from tests.benchmarks.transforms import crop"
        source = source.replace("from torchvision.transforms.functional import crop", ours)
    options = {
        "pretrained_model_name_or_path": args.base,
        "train_data_dir": "runs/bench/dataset/train",
        "caption_column": "text",
        "resolution": args.resolution,
        "train_batch_size": 1,
        "gradient_accumulation_steps": BATCH,
        "max_train_steps": args.steps,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "seed": 0,
        "checkpointing_steps": 1_000_000,
        "mixed_precision": args.precision,
        "output_dir": "theirs",
    }
    flags = ["--center_crop"] + ["--gradient_checkpointing"] * args.checkpointing
    sys.argv = [args.script, *(f"--{k}={v}" for k, v in options.items()), *flags]
    exec(compile(source, args.script, "exec"), {"__name__": "__main__", "__file__": args.script})
    return stamps


def note_steps() -> list[float]:
    """Have a progress bar of steps note when each ends, and return the list that it fills."""
    from tqdm.std import tqdm

    stamps, update = [], tqdm.update

    def noted(bar, n=1):
        if (getattr(bar, "desc", "") or "").lower().startswith("steps"):
            stamps.append(time.perf_counter())
        return update(bar, n)

    tqdm.update = noted
    return stamps


def peak_gb() -> float:
    """The peak of the GPU's memory, or of this process's without one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def one_side(args: argparse.Namespace) -> dict[str, float]:
    """Run a side in this process: images per second, and the peak of memory in GB."""
    import torch

    if torch.cuda.is_available() and args.cap_gb and args.side == "ours":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(args.cap_gb * 1e9 / total)
    stamps = {"ours": ours, "theirs": theirs}[args.side](args)
    warm = min(WARM, len(stamps) - 3)
    rate = BATCH * (len(stamps) - 2 - warm) / (stamps[-2] - stamps[warm])  # the last step measures
    return {
        "rate": rate,
        "gb": peak_gb(),
        "peak": rate * image_flops(args) / matrix_flops_per_s(args),
    }


def image_flops(args: argparse.Namespace) -> float:
    """Floating-point operations of an image's step: a forward pass, and twice as much backward, or once for a LoRA."""
    import torch

    from helpers.train.limits import forward_flops
    from helpers.train.model import Denoiser, read_base

    family, settings = read_base(args.base)
    name, kind = family.DENOISER
    with torch.device("meta"):
        denoiser = kind.from_config(settings[name])
    side = args.resolution // 2 ** (len(settings["vae"]["block_out_channels"]) - 1)
    forward = forward_flops(Denoiser(family, {}, denoiser, {}), side)
    return forward * (2 if args.method == "lora" else 3)


def matrix_flops_per_s(args: argparse.Namespace, side: int = 4096, times: int = 8) -> float:
    """What the device reaches on a matrix product of its own, in the precision that is trained in."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    side = side if device == "cuda" else side // 4
    a = torch.randn(side, side, device=device, dtype=kinds[args.precision])
    for count in (2, times):  # the first warm it up
        began = time.perf_counter()
        for _ in range(count):
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()
    return times * 2 * side**3 / (time.perf_counter() - began)


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Lay out a place to work in: the base model, and a run of 64 photographs as far as 03."""
    from tests.conftest import make_dataset, photograph

    for name in ("helpers", "tests", "assets", "pyproject.toml"):
        (work / name).symlink_to(ROOT / name)
    os.chdir(work)
    for i in range(64):
        path = photograph(
            work / f"pictures/{i:02d}.png", i, size=(args.resolution, args.resolution)
        )
        path.with_suffix(".txt").write_text(f"a picture of place number {i}")
    make_dataset("bench", work / "pictures")
    if args.size == "sd15":
        make_full_size(args, work / "base")


def make_full_size(args: argparse.Namespace, folder: Path) -> None:
    """Stable Diffusion v1-5's UNet in random weights, beside the tiny text encoder's and autoencoder's kin."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from helpers.train.portable import write_text_encoder_names, write_tokenizer

    torch.manual_seed(0)
    tiny = StableDiffusionPipeline.from_pretrained("assets/tiny-sd", safety_checker=None)
    c, width = args.channels, 768 * args.channels // 320
    width -= width % 12
    text = CLIPTextConfig(
        vocab_size=len(tiny.tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=tiny.tokenizer.bos_token_id,
        eos_token_id=tiny.tokenizer.eos_token_id,
    )
    levels = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    v = max(32, 128 * c // 320 // 32 * 32)
    unet = {"block_out_channels": (c, 2 * c, 4 * c, 4 * c), "attention_head_dim": 8}
    tiny.register_modules(
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=width, **unet),
        text_encoder=CLIPTextModel(text),
        vae=AutoencoderKL(
            down_block_types=levels[0],
            up_block_types=levels[1],
            block_out_channels=(v, 2 * v, 4 * v, 4 * v),
            layers_per_block=2,
        ),
    )
    tiny.save_pretrained(folder)
    write_tokenizer(tiny.tokenizer, folder / "tokenizer")  # as older versions read them too
    write_text_encoder_names(folder / "text_encoder/model.safetensors")
    args.base = str(folder)


def measure(args: argparse.Namespace, work: Path, side: str, method: str) -> dict[str, float]:
    """A side in a process of its own, from the start."""
    for name in ("checkpoints", "model", "verdict.json", "train_log.jsonl"):
        left = work / "runs/bench" / name
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    script = args.lora_script if method == "lora" else args.script
    command = [sys.executable, "-m", "tests.benchmarks.train", "--side", side, "--method", method]
    for name in ("base", "size", "steps", "resolution", "precision", "cap_gb", "optimizer"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--script", str(Path(script).resolve())] + ["--checkpointing"] * args.checkpointing
    command += ["--compile"] * args.compile
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}, {method}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args: argparse.Namespace, work: Path, method: str) -> str:
    """Alternated pairs, and their row of the table."""
    pairs = []
    for repeat in range(args.repeats):
        sides = ("ours", "theirs") if repeat % 2 else ("theirs", "ours")
        pairs.append({side: measure(args, work, side, method) for side in sides})
        print(method, pairs[-1], flush=True)
    ratio = statistics.median(p["ours"]["rate"] / p["theirs"]["rate"] for p in pairs)
    rate, gb, peak = (
        {s: statistics.median(p[s][what] for p in pairs) for s in ("ours", "theirs")}
        for what in ("rate", "gb", "peak")
    )
    target = TARGETS[args.size, method]
    share = gb["ours"] / gb["theirs"]
    memory = "" if args.size == "tiny" else f", {share:.0%}: {_kept(share <= MOST_MEMORY)}"
    return (
        f"| {args.size}, {method}, {args.resolution} px | {rate['ours']:.2f} | {rate['theirs']:.2f} | "
        f"{ratio:.2f} (at least {target}: {_kept(ratio >= target)}) | {gb['ours']:.2f} / {gb['theirs']:.2f}{memory} | "
        f"{peak['ours']:.0%} / {peak['theirs']:.0%} |"
    )


def _kept(holds: bool) -> str:
    return "kept" if holds else "NOT KEPT"


def versions() -> str:
    from importlib.metadata import version

    names = ("torch", "diffusers", "transformers", "accelerate", "peft")
    return (
        f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", help="diffusers' train_text_to_image.py")
    parser.add_argument("--lora-script", help="diffusers' train_text_to_image_lora.py")
    parser.add_argument("--size", choices=("tiny", "sd15", "sdxl"), default="tiny")
    parser.add_argument("--channels", type=int, default=320, help="of sd15's first block")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--checkpointing", action="store_true", help="on both sides")
    parser.add_argument(
        "--optimizer", default="adamw", choices=("adamw", "adamw8bit"), help="ours; theirs is AdamW"
    )
    parser.add_argument("--compile", action="store_true", help="ours: torch_compile")
    parser.add_argument("--cap-gb", type=float, default=0, help="of our GPU memory, as a T4's 14")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=("full", "lora"), help="this one alone")
    parser.add_argument("--base", default=str(ROOT / "assets/tiny-sd"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.side:
        print(json.dumps(one_side(args)))
        return
    scripts = {"full": args.script, "lora": args.lora_script}
    scripts = {name: str(Path(path).resolve()) for name, path in scripts.items() if path}
    args.script, args.lora_script = scripts.get("full"), scripts.get("lora")
    wanted = [m for m in scripts if args.method in (None, m)]
    with tempfile.TemporaryDirectory() as folder:
        prepare(args, Path(folder))
        rows = [compare(args, Path(folder), method) for method in wanted]
    print(f"\n{versions()}\n")
    print("| what | ours, images/s | theirs | ratio | memory, GB | share of the matrix peak |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main()
