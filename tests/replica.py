"""Colab's images as they are: `make replica` installs each one's Python, torch and libraries, and walks there.

Each stands in build/replica/IMAGE, in the versions of Google's list of that image. torch is the index's build for CUDA,
some 3 GB, the only one of that version for these Pythons; it runs without a GPU.
"""

import subprocess
import sys
from pathlib import Path

from tests.image import IMAGES, REQUIREMENTS, ROOT, TORCHS, packages, python_of

FOLDER = ROOT / "build/replica"
TORCH = ("torch", "torchvision")
# what the walk wants beside what Setup installs
OF_THE_TESTS = ("pytest", "pytest-xdist", "pytest-rerunfailures", "psycopg2-binary", "wandb")


def pins_of(image: str) -> dict[str, str]:
    """Return what the image has, torch without the name of its build, without what came with torch."""
    found = packages(image)
    pins = {name: version for name, version in found.items() if not TORCHS.match(name)}
    return pins | {name: found[name].split("+")[0] for name in TORCH}


def install(image: str) -> Path:
    """Install what Setup would find and add on an image; return its Python."""
    folder = FOLDER / image
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([python_of(image), "-m", "venv", folder], check=True)
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in pins_of(image).items()))
    wanted = [word for file in REQUIREMENTS for word in ("-r", str(file))]
    for words in (["pip"], [*TORCH, *wanted, *OF_THE_TESTS]):
        subprocess.run([python, "-m", "pip", "install", "-q", "-c", pins, *words], check=True)
    return python


def main() -> None:
    for image in IMAGES:
        done = subprocess.run([install(image), "-m", "pytest", *sys.argv[1:]], cwd=ROOT)
        if done.returncode:
            sys.exit(f"the walk fails on {image}")


if __name__ == "__main__":
    main()
