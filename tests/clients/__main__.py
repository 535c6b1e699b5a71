"""Load every export by the code of the programs that read it: `python -m tests.clients --sd-scripts PATH --comfyui PATH
--forge PATH`, each a checkout that whoever runs this has fetched, and any may be left out.

Narrow models in the true blocks of Stable Diffusion 1, 2 and XL are trained and exported. Each program runs in a
virtual environment that is made for it from PyPI, on the torch that is here. What it leaves unmatched is counted, and
what its modules make of the same words, noise, times and sizes is compared with what was trained; of a light LoRA with
what 05 draws by it. SDXL's files are compared at full size as well, by names and shapes. Exits with 1 if a key is left
over or an output is off by more than 1e-4.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTokenizer

from helpers.demo.tokenizer import make_tokenizer
from tests.clients.cases import CASES, make_case
from tests.clients.shapes import make_shapes

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-4
FULL_SIZE = "sdxl-full-size"  # a case of names and shapes alone
OUTPUTS = ("words", "pooled", "noise", "pixels")
ROW = "| {:15} | {:10} | {:10} | {:9} | {:7} | {:7} | {:7} | {:7} |".format
VISION = f"torchvision==0.{int(torch.__version__.split('.')[1]) + 15}.0"
OLDER = (  # as sd-scripts pins them
    *("diffusers==0.32.1", "transformers==4.54.1", "huggingface-hub==0.34.3", "tokenizers==0.21.4"),
    *("accelerate==1.6.0", "peft==0.17.1", "safetensors==0.4.5", "einops==0.7.0", VISION),
    *("opencv-python-headless", "toml", "imagesize", "voluptuous", "rich", "ftfy"),
    *(
        "torchsde",
        "trampoline",
        "sentencepiece",
        "spandrel",
        "kornia",
        "kornia-rs",
        "psutil",
        "scipy",
    ),
)
FORGE = (
    *("diffusers==0.31.0", "transformers==4.46.1", "huggingface-hub==0.26.2", "tokenizers==0.20.3"),
    *("accelerate==1.6.0", "peft==0.13.2", "safetensors==0.4.5", "einops==0.4.1", VISION),
    *("huggingface-guess==0.1.0", "torchsde", "trampoline", "psutil", "sentencepiece"),
)
CLIENTS = {  # its script, and what its environment has
    "diffusers": ("in_diffusers", OLDER),
    "sd-scripts": ("in_sd_scripts", OLDER),
    "comfyui": ("in_comfyui", OLDER),
    "forge": ("in_forge", FORGE),
}


def main() -> None:
    args = _parse()
    programs = {"diffusers": Path(), **{n: p for n, p in args.programs.items() if p}}
    work = Path(args.work).absolute()
    tokenizer = _tokenizer(programs)
    environments = {n: _environment(work, CLIENTS[n][1]) for n in programs}
    bad = 0
    print(ROW("case", "program", "file", "unmatched", *OUTPUTS))
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        os.chdir(scratch)
        for case in CASES:
            if args.case and case.name not in args.case:
                continue
            folder = Path(scratch) / "cases" / case.name
            folder.mkdir(parents=True)
            make_case(case, folder, tokenizer)
            for name, path in programs.items():
                script = [CLIENTS[name][0], path, folder]
                for file, found in _ask(environments[name], *script):
                    bad += not _is_read(case.name, name, file, found)
        if not args.case or FULL_SIZE in args.case:
            folder = make_shapes(Path(scratch) / FULL_SIZE)
            for name in programs.keys() - {"diffusers"}:
                script = ["full_size", name, programs[name], folder]
                for file, found in _ask(environments[name], *script):
                    bad += not _is_read(FULL_SIZE, name, file, found)
    sys.exit(f"{bad} files are not read as they should be" if bad else 0)


def _is_read(case: str, program: str, file: str, found: dict[str, Any]) -> bool:
    """Print a row, and what is wrong; return whether a file is read as it should be."""
    seen = [found["differences"].get(what) for what in OUTPUTS]
    told = ["" if value is None else f"{value:.1e}" for value in seen]
    print(ROW(case, program, file, len(found["unmatched"]), *told), flush=True)
    for note in found.get("notes", []):
        print(f"  {note}")
    wrong = found.get("error") or found["unmatched"][:4]
    if not wrong and any(value is not None and not value <= TOLERANCE for value in seen):
        wrong = "an output is off"
    if wrong:
        print(f"  {wrong}")
    return not wrong


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.clients")
    for name in CLIENTS.keys() - {"diffusers"}:
        parser.add_argument(f"--{name}", type=lambda p: Path(p).absolute(), metavar="PATH")
    parser.add_argument("--case", action="append", help="only this one; may be given again")
    parser.add_argument(
        "--work", default=ROOT / "build/clients", help="where environments are kept"
    )
    args = parser.parse_args()
    args.programs = {n: getattr(args, n.replace("-", "_")) for n in CLIENTS if n != "diffusers"}
    return args


def _tokenizer(programs: dict[str, Path]) -> CLIPTokenizer:
    """CLIP's own words, from a program that brings them; its loaders take no others."""
    places = {
        "comfyui": "comfy/sd1_tokenizer",
        "forge": "backend/huggingface/runwayml/stable-diffusion-v1-5/tokenizer",
    }
    for name, place in places.items():
        if name in programs:
            return CLIPTokenizer.from_pretrained(programs[name] / place, model_max_length=77)
    return make_tokenizer()


def _environment(work: Path, packages: tuple[str, ...]) -> Path:
    """The Python of an environment with these packages over what is installed here; made once."""
    folder = work / packages[1].replace("==", "-")  # by its transformers
    python = folder / "bin/python"
    ready = folder / "packages.json"
    if not ready.is_file() or json.loads(ready.read_text()) != list(packages):
        print(f"making {folder}", flush=True)
        venv.create(folder, clear=True)
        site = next(folder.glob("lib/python*/site-packages"))
        (site / "ordinary.pth").write_text(sysconfig.get_path("purelib"))
        command = [python, "-m", "pip", "install", "-q", "--no-deps", *packages]
        subprocess.run(command, check=True)
        ready.write_text(json.dumps(packages))
    return python


def _ask(python: Path, script: str, *given: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a script in a program's environment makes of a case's files, each by its name."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"TRANSFORMERS_VERBOSITY": "warning"}  # it tells of keys that it makes up by a warning
    command = [python, "-m", f"tests.clients.{script}", *given]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    if not lines:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield "", {"unmatched": [], "differences": {}, "error": last}
        return
    if os.environ.get("CLIENTS_VERBOSE"):
        print(done.stderr[-3000:])
    yield from json.loads(lines[-1].removeprefix("found ")).items()


if __name__ == "__main__":
    main()
