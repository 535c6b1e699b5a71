"""Setup, the first cell of each notebook: install missing packages, and describe the machine.

This module needs only Python. `python -m helpers.setup` installs the same from a shell.
"""

import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helpers.core.errors import RunError
from helpers.core.process import prepare_process, run_command
from helpers.host.here import HOST, mirror_words

GB = 1e9
CHECKED = Path(__file__).with_name("runtime.txt")  # the versions in Colab's images, a block each
IF_IT_FAILS = "\n           Should a cell fail: "
NO_ANSWER = re.compile(r"connection broken by '(.*?)': /|(Could not fetch URL .*)")


def set_up() -> str:
    """Return a description of the machine. On a rented one, missing packages are installed and the mirror opened first.

    A rerun asks again for a place that was refused. Raises RunError if installing fails.
    """
    prepare_process()
    gpu = gpu_words()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    disk = shutil.disk_usage(".").free / GB
    machine = f"machine    {gpu or 'no GPU'}, {memory:.0f} GB of memory, {disk:.0f} GB of disk free"
    if not HOST.is_rented:
        return machine
    found = (installed_words(bool(gpu)), runtime_words(), machine, mirror_words())
    return "\n".join([*found, *HOST.advice])


def installed_words(has_gpu: bool) -> str:
    """Install missing packages, and return a text that lists them. If a GPU package fails, the text says so."""
    came, without = install("-r", "requirements.txt"), []
    for name in Path("requirements-gpu.txt").read_text().splitlines() if has_gpu else []:
        try:
            came += [] if name.startswith("#") else install(name)
        except RunError as error:
            without.append(f"\n           04 and 05 go without: {error}")
    return "".join([f"installed  {', '.join(came) or 'nothing: all is there'}", *without])


def gpu_words() -> str:
    """Return the GPUs' number, name and memory as nvidia-smi reports them, or "" if there is no GPU."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        first, *others = subprocess.check_output(query, text=True).splitlines()
        name, mebibytes = first.split(", ")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return ""
    count = f"{1 + len(others)} x " if others else ""
    return f"{count}{name} with {float(mebibytes) * 2**20 / GB:.0f} GB"


def install(*what: str) -> list[str]:
    """Install packages by pip without changing torch, and return what was installed. Raises RunError if pip fails."""
    with tempfile.TemporaryDirectory() as folder:
        report, pins = Path(folder) / "report.json", Path(folder) / "pins.txt"
        pins.write_text(f"torch=={torch}\n" if (torch := package_version("torch")) else "")
        options = ["-q", "--no-color", "--root-user-action=ignore", "--report", report, "-c", pins]
        command = [sys.executable, "-m", "pip", "install", *options, *what]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RunError(
                f"pip could not install {what[-1]}: {_reason(done.stderr)}; run this cell again"
            )
        came = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    importlib.invalidate_caches()
    return [f"{item['name']} {item['version']}" for item in came]


def _reason(said: str) -> str:
    last = (said.strip().splitlines() or ["no reason given"])[-1]
    # pip blames the package even if the index did not answer
    found = NO_ANSWER.search(said) if "No matching distribution" in last else None
    if not found:
        return last
    return f"the package index does not answer ({found[1] or found[2]}){HOST.if_offline}"


def runtime_words() -> str:
    """Return a line on how the installed package versions differ from those of the tested Colab image."""
    python = ".".join(platform.python_version_tuple()[:2])
    images = {}
    for block in CHECKED.read_text(encoding="utf-8").strip().split("\n\n"):
        title, *pins = block.splitlines()
        image = dict(pin.split("==") for pin in pins)
        images[image["python"]] = title.removeprefix("# "), image
    title, image = images.get(python) or [*images.values()][-1]
    moved = []
    for name, checked in image.items():
        found = python if name == "python" else package_version(name).split("+")[0]
        if found != checked:
            moved.append(f"{name} {found or 'missing'} (checked with {checked})")
    if not moved:
        return f"runtime    as this was checked with ({title})"
    words = f"runtime    not quite what this was checked with, mostly harmless: {', '.join(moved)}"
    return words + (IF_IT_FAILS + HOST.if_it_fails if HOST.if_it_fails else "")


def package_version(name: str) -> str:
    """Return the version of an installed package, or "" if the package is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    run_command(lambda: print(installed_words(bool(gpu_words()))))
