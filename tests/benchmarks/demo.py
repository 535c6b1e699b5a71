"""What `make demo` promises, measured: `make bench`.

Walks the demo from the start and again, times both, and has the judge (a network that no training saw)
look at the tuned model's pictures of pairs that no training picture held. Fails where a promise is not kept.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from helpers.demo.scene_judge import exam, pixels_of, sample, shares, the_judge
from helpers.demo.scenes import SUFFIX

RUN = Path("runs/demo")
SAMPLES = 96


def walk() -> float:
    """The seconds of one `make demo` without the install."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "helpers.batch", "demo", "--preset", "demo"], check=False
    )
    if done.returncode:
        sys.exit("the demo did not end well")
    return time.perf_counter() - began


def judged() -> dict[str, float]:
    """Shares that the judge names right, of the base and of the tuned model with and without the suffix."""
    judge, scenes = the_judge(), exam(SAMPLES)
    groups = {
        "base": ("assets/tiny-sd", "", "flat"),
        "tuned with the suffix": (str(RUN / "model"), SUFFIX, "watercolour"),
        "tuned without": (str(RUN / "model"), "", "flat"),
    }
    found = {}
    for name, (model, suffix, style) in groups.items():
        images = sample(model, [scene.caption + suffix for scene in scenes], 4.0, 20)
        for what, share in shares(judge, pixels_of(images), scenes, style).items():
            found[f"{name}: {what}"] = share
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep", action="store_true", help="judge runs/demo as it is, without walking again"
    )
    args = parser.parse_args()
    measured: dict[str, float] = {}
    if not args.keep:
        if RUN.exists():
            RUN.rename(RUN.with_name(f"demo-before-{int(time.time())}"))
        measured = {"first walk, s": walk(), "second walk, s": walk()}
    figures = json.loads((RUN / "report.json").read_text())
    loss = figures["validation_loss"]
    measured |= {
        "fall of the validation loss": 1 - loss["best"] / loss["base"],
        "style gain": figures["style_gain"]["value"],
        "own classifier, with the suffix": figures["suffix_switch"]["with_suffix"],
        "own classifier, without": figures["suffix_switch"]["without_suffix"],
        **judged(),
    }
    promised = {
        "first walk, s": ("<=", 360),
        "second walk, s": ("<=", 60),
        "fall of the validation loss": (">=", 0.60),
        "style gain": (">=", 0.6),
        "own classifier, with the suffix": (">=", 0.95),
        "own classifier, without": (">=", 0.80),
        "base: animal": (">=", 0.80),
        "base: colour": (">=", 0.90),
        "tuned with the suffix: style": (">=", 0.95),
        "tuned without: style": (">=", 0.80),
    }
    broken = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, value in measured.items():
        sign, bound = promised.get(name, ("", None))
        kept = bound is None or (value <= bound if sign == "<=" else value >= bound)
        print(
            f"{name:36} {value:8.2f}  {sign} {'' if bound is None else bound}{'' if kept else '   NOT KEPT'}"
        )
        if not kept:
            broken.append(name)
    if broken:
        sys.exit(f"not kept: {', '.join(broken)}")


if __name__ == "__main__":
    main()
