"""The main memory that SDXL takes from load to export, as the kernel counts it, beside Colab's 12.7 GB.

    python -m tests.benchmarks.sdxl_memory --work /tmp/xl        # needs 22 GB of disk and some 20 minutes of two cores

A base in SDXL's full shapes and random weights in half precision is made once. A process then trains two steps of
`t4-xl` on it at a smaller side, and exports; another draws with the base and with the LoRA, as 05 does. Both compute in
half precision on the CPU, so that what a GPU would hold is in main memory too. RssAnon is counted: pages of mapped
files are given back as soon as memory is short.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

LIMIT_GB = 12.7  # of a free Colab machine
ROOT = Path(__file__).parents[2]


class Peak:
    """The most anonymous memory of this process, looked at every 10 ms."""

    def __init__(self) -> None:
        self.gb, self.began = 0.0, time.perf_counter()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.gb = max(self.gb, anonymous_gb())
            time.sleep(0.01)

    def tell(self, what: str) -> None:
        seconds = time.perf_counter() - self.began
        print(f"{what:28} now {anonymous_gb():5.2f} GB, peak {self.gb:5.2f} GB, {seconds:5.0f} s")
        sys.stdout.flush()


def anonymous_gb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError("/proc/self/status has no RssAnon: Linux 4.5 or newer is needed")


def make(work: Path) -> None:
    """Make the base in full shapes, and a dataset."""
    import torch

    from tests.conftest import make_dataset, photograph

    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    for i in range(12):
        path = photograph(work / f"pictures/{i:02d}.png", i, size=(256, 256))
        path.with_suffix(".txt").write_text(f"a picture of place number {i}")
    make_dataset("bench", work / "pictures")
    make_weights(work / "sdxl", torch.bfloat16, "cpu")


def make_weights(folder: Path, dtype: Any, device: str) -> None:
    """Make an SDXL in full shapes and random weights, a component at a time."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from tests.bases import FULL_SDXL, full_size_sdxl, make_sdxl

    full_size_sdxl(folder, make_sdxl(folder.with_name(f"tiny-{folder.name}")))
    kinds = {
        "unet": UNet2DConditionModel.from_config,
        "vae": AutoencoderKL.from_config,
        "text_encoder": lambda config: CLIPTextModel(CLIPTextConfig(**config)),
        "text_encoder_2": lambda config: CLIPTextModelWithProjection(CLIPTextConfig(**config)),
    }
    torch.manual_seed(0)
    for part, build in kinds.items():
        with torch.device("meta"):
            model = build(dict(FULL_SDXL[part])).to(dtype)
        model.to_empty(device=device)
        for name, tensor in model.state_dict().items():
            if name.endswith("position_ids"):
                tensor.copy_(torch.arange(tensor.shape[-1]).expand(tensor.shape))
            else:
                tensor.uniform_(-0.02, 0.02)
        model.save_pretrained(folder / part, max_shard_size="50GB")


def in_half_precision() -> None:
    """Have 04 and 05 compute as on a GPU."""
    import torch

    from helpers.host.device import Device
    from helpers.inference.draw import sampler
    from helpers.train import trainer

    half = Device(torch.device("cpu"), "bf16", "sdpa", ("half precision on a CPU",))
    trainer.pick_device = sampler.pick_device = lambda *_, **__: half


def train(side_px: int) -> None:
    from helpers.config import InferenceConfig, TrainConfig, configure
    from helpers.core.run import Run
    from helpers.inference.share.one_file import export
    from helpers.train import trainer

    in_half_precision()
    peak, run = Peak(), Run("bench")
    given = {
        "run": "bench",
        "preset": "t4-xl",
        "base_model": "sdxl",
        "resolution_px": side_px,
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "save_every_steps": 2,
        "validate_every_steps": 2,
        "preview_every_steps": 2,
        "validation_pairs": 2,
        "num_inference_steps": 1,
        "prior_share": 0.0,
        "prompts": ("a cat",),
        "allow_slow": True,
        "tracker": "none",
    }
    for step in trainer.train(configure(TrainConfig, given), run):
        peak.tell(f"step {step.step}")
    peak.tell("model/ written, read back")
    export(run, InferenceConfig(run="bench", one_file="yes"))
    peak.tell("export/ written, read back")


def draw(side_px: int) -> None:
    from helpers.core.run import Run
    from helpers.inference.draw.sampler import Request, Sampler

    in_half_precision()
    peak, sampler = Peak(), Sampler(Run("bench"))
    peak.tell("05 loaded")
    for model in ("tuned", "base", "step-000002", "tuned"):
        request = Request("a cat", 1, num_inference_steps=1, model=model)
        sampler.draw([request])
        peak.tell(f"drawn with {model}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--side-px", type=int, default=256, help="of the pictures that are trained")
    parser.add_argument("--part", choices=("make", "train", "draw"))
    args = parser.parse_args()
    if args.part == "make":
        return make(args.work)
    if args.part:
        return {"train": train, "draw": draw}[args.part](args.side_px)
    work = args.work.absolute()
    for part in ("make", "train", "draw"):
        if part == "make" and (work / "sdxl/unet/diffusion_pytorch_model.safetensors").is_file():
            continue
        command = [sys.executable, "-m", "tests.benchmarks.sdxl_memory", "--part", part]
        command += ["--work", str(work), "--side-px", str(args.side_px)]
        place = {"cwd": ROOT if part == "make" else work}
        subprocess.run(command, **place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return None


if __name__ == "__main__":
    main()
