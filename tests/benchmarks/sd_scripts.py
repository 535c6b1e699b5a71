"""A run of sd-scripts' own trainers, as a user of them would start one: latents cached, SDPA, batch 4.

    PYTHON -m tests.benchmarks.sd_scripts --sd-scripts PATH --method lora --base FOLDER --images FOLDER --steps 40

PYTHON is that of sd-scripts' own environment (python -m tests.clients makes one in build/clients); nothing of helpers/
is imported. Prints images/s, from the sixth step to the last, and the peak of memory as JSON.
"""

import argparse
import csv
import json
import os
import shutil
import sys
import time
from pathlib import Path

WARM, BATCH = 5, 4
TOKENIZER = "openai_clip-vit-large-patch14"  # the name of its copy in a cache folder


def lay_out(args: argparse.Namespace, work: Path) -> list[str]:
    """Write the data set as the trainer wants it, and return the options that name it."""
    rows = list(csv.DictReader((args.images / "metadata.csv").open(encoding="utf-8")))
    shutil.copytree(args.base / "tokenizer", work / "tokenizers" / TOKENIZER)
    named = ["--tokenizer_cache_dir", str(work / "tokenizers")]
    if args.method == "full":
        captions = {str(args.images / r["file_name"]): {"caption": r["text"]} for r in rows}
        (work / "captions.json").write_text(json.dumps(captions))
        return [
            *named,
            "--train_data_dir",
            str(args.images),
            "--in_json",
            str(work / "captions.json"),
        ]
    folder = work / "images/1_art"
    folder.mkdir(parents=True)
    for row in rows:
        path = folder / row["file_name"]
        shutil.copyfile(args.images / row["file_name"], path)
        path.with_suffix(".txt").write_text(row["text"])
    return [*named, "--train_data_dir", str(folder.parent), "--caption_extension", ".txt"]


def options(args: argparse.Namespace, work: Path) -> list[str]:
    given = {
        "pretrained_model_name_or_path": args.base,
        "output_dir": work / "out",
        "resolution": f"{args.resolution},{args.resolution}",
        "train_batch_size": BATCH,
        "max_train_steps": args.steps,
        "mixed_precision": args.precision,
        "learning_rate": 1e-4 if args.method == "lora" else 1e-5,
        "optimizer_type": "AdamW",
        "lr_scheduler": "constant",
        "max_data_loader_n_workers": 2,
        "seed": 0,
    }
    flags = [
        "--cache_latents",
        "--sdpa",
        "--gradient_checkpointing",
        "--persistent_data_loader_workers",
    ]
    if args.method == "lora":
        given |= {"network_module": "networks.lora", "network_dim": 4, "network_alpha": 4}
        flags.append("--network_train_unet_only")
    return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), *flags]


def train(args: argparse.Namespace, work: Path) -> list[float]:
    """Run the trainer in this process, and return the times at which its steps ended."""
    import tqdm.std

    import tests.clients.loader  # noqa: F401, torchvision's operations where its wheel has none for a CPU

    stamps, update = [], tqdm.std.tqdm.update

    def noted(bar, n=1):
        if (getattr(bar, "desc", "") or "").startswith("steps"):
            stamps.append(time.perf_counter())
        return update(bar, n)

    tqdm.std.tqdm.update = noted
    script = args.sd_scripts / ("train_network.py" if args.method == "lora" else "fine_tune.py")
    sys.path.insert(0, str(args.sd_scripts))
    sys.argv = [str(script), *lay_out(args, work), *options(args, work)]
    os.chdir(work)
    exec(
        compile(script.read_text(), script, "exec"),
        {"__name__": "__main__", "__file__": str(script)},
    )
    return stamps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sd-scripts", type=Path, required=True)
    parser.add_argument("--method", choices=("full", "lora"), required=True)
    parser.add_argument("--base", type=Path, required=True, help="in diffusers layout")
    parser.add_argument(
        "--images", type=Path, required=True, help="with metadata.csv, as 03 makes it"
    )
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--precision", default="fp16", choices=("no", "fp16", "bf16"))
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    for name in ("sd_scripts", "base", "images", "work"):
        setattr(args, name, getattr(args, name).resolve())
    stamps = train(args, args.work)
    import resource

    import torch

    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else own
    warm = min(WARM, len(stamps) - 2)
    rate = BATCH * (len(stamps) - 1 - warm) / (stamps[-1] - stamps[warm])
    print(json.dumps({"images_per_s": rate, "gb": peak / 1e9}))


if __name__ == "__main__":
    main()
