"""Writes the golden run of today's format: a base of random weights, nine images, and a training stopped after step 3.

`python -m tests.golden` was run once for format 1, and refuses to write over what it wrote.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from helpers.config import TrainConfig, configure
from helpers.core.files import write_json
from helpers.train.checkpoint import FORMAT
from helpers.train.trainer import train
from tests.conftest import make_dataset, photograph, tiny_base
from tests.golden import SETTINGS, final_weights, golden_folder


def main() -> None:
    target = golden_folder(FORMAT).absolute()
    if target.exists():
        raise SystemExit(f"{target} is there already: a golden checkpoint is never written again")
    work = Path(tempfile.mkdtemp())
    base = make_small_base(work / "base")
    os.chdir(work)
    for i in range(6):
        photograph(work / f"in/{i}.png", i, size=(32, 32)).with_suffix(".txt").write_text(
            f"thing number {i}"
        )
    run = make_dataset("golden", work / "in")
    config = configure(TrainConfig, {"base_model": "base", **SETTINGS})
    steps = train(config, run)
    while next(steps).step < 4:
        pass
    steps.close()
    shutil.copytree(base, target / "base")
    for path in (run.dataset, run.checkpoints):
        shutil.copytree(path, target / "run" / path.name)
    for stage in ("dataset", "train"):
        (target / "run/config").mkdir(exist_ok=True)
        shutil.copy(run.config(stage), target / "run/config")
    rows = [step.loss for step in train(config, run)]
    save_file(final_weights(run), target / "expected.safetensors")
    write_json(target / "expected.json", {"losses": rows, "torch": torch.__version__})


def make_small_base(folder: Path) -> Path:
    """conftest's tiny base with a UNet of its own, in half precision, which loads to the same bits everywhere."""
    made = tiny_base.__wrapped__(SimpleNamespace(mktemp=lambda _: folder.parent / "made"))
    unet = UNet2DConditionModel(
        sample_size=16,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=(4, 8),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(made, unet=unet)
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
