"""What each program's script shares: the case, and what is found in it. It runs in every environment."""

import json
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

if not hasattr(
    torch.ops.torchvision, "nms"
):  # PyPI's wheel is for CUDA: none of its own operations is used here
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.set_num_threads(1)
MARKS = {"v_pred", "ztsnr"}  # read, and left over


def read_case(folder: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What is told of a case, with the paths of its files; and its inputs and outputs."""
    place = Path(folder)
    case = json.loads((place / "case.json").read_text())
    name = case["name"]
    case |= {
        "folder": str(place / "model"),
        "model": str(place / f"export/{name}.safetensors"),
        "yaml": str(place / f"export/{name}.yaml"),
        "base": str(place / "base.safetensors"),
        "base_folder": str(place / "base"),
    }
    for kind in ("loras", "diffusers_loras"):
        case[kind] = {file: str(place / "export" / path) for file, path in case[kind].items()}
    return case, load_file(place / "truth.safetensors")


def narrow_unet(kind: Any, case: dict) -> None:
    """Give a model that ComfyUI or Forge knows, whose sizes those are, the UNet's sizes of a case."""
    width = case["widths"][0]
    kind.unet_config |= {"context_dim": case["context"], "model_channels": width}
    if case["family"] == "sd1":
        kind.unet_extra_config["num_heads"] = case["heads"]
    elif case["family"] == "sd2":
        kind.unet_extra_config["num_head_channels"] = width // case["heads"]
    else:  # whose heads are 64 wide here too
        kind.unet_config["adm_in_channels"] = case["pooled_and_sizes"]


class Found:
    """Unmatched keys and largest differences, file by file; told as one line of JSON."""

    def __init__(self, truth: dict[str, torch.Tensor]) -> None:
        self.truth = truth
        self.files: dict[str, dict] = {}

    @contextmanager
    def loading(self, file: str) -> Iterator[None]:
        """What is raised inside is told of the file."""
        self.files[file] = {"unmatched": [], "differences": {}, "notes": []}
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.files[file]["error"] = f"{type(error).__name__}: {error}"[:300]

    def unmatched(self, file: str, names: Iterable[str]) -> None:
        self.files[file]["unmatched"] += sorted(set(names) - MARKS)

    def note(self, file: str, what: str) -> None:
        """Something to be known of the file that is no error of it."""
        self.files[file]["notes"].append(what)

    def truth_of(self, file: str, what: str) -> torch.Tensor:
        """What was trained; or, of a light LoRA, what that draws."""
        return self.truth.get(f"{file.rstrip('/')}.{what}", self.truth[what])

    def difference(self, file: str, what: str, output: torch.Tensor) -> float:
        return float((output.detach().float().cpu() - self.truth_of(file, what)).abs().max())

    def compare(self, file: str, what: str, output: torch.Tensor) -> None:
        self.files[file]["differences"][what] = self.difference(file, what, output)

    def tell(self) -> None:
        sys.stdout.flush()
        print("\nfound " + json.dumps(self.files))
