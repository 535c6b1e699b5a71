"""What a notebook does first: have what the runtime lacks, and say what there is. Needs Python alone."""

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from helpers.colab import SESSION, drive_words, on_colab
from helpers.errors import RunError

GB = 1e9
CHECKED = Path(__file__).with_name("runtime.txt")  # Colab's versions that this project was run with


def set_up() -> str:
    """On Colab install what is missing and mount Drive; anywhere, say what the machine has.

    Run again it does nothing twice, but asks again for a Drive that was refused.
    Raises RunError if the packages cannot be installed.
    """
    gpu = gpu_words()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    disk = shutil.disk_usage(".").free / GB
    machine = f"machine    {gpu or 'no GPU'}, {memory:.0f} GB of memory, {disk:.0f} GB of disk free"
    if not on_colab():
        return machine
    installed = f"installed  {', '.join(install_missing(bool(gpu))) or 'nothing: all is there'}"
    return "\n".join([installed, runtime_words(), machine, drive_words(), SESSION])


def gpu_words() -> str:
    """The first GPU and its memory, as NVIDIA's driver names it; empty without one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        name, mebibytes = subprocess.check_output(query, text=True).splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return ""
    return f"{name} with {float(mebibytes) * 2**20 / GB:.0f} GB"


def install_missing(has_gpu: bool) -> list[str]:
    """Have pip install what requirements.txt names and is not here, torch left as it is; name what came.

    Raises RunError with pip's last words.
    """
    files = ["requirements.txt", *(["requirements-gpu.txt"] if has_gpu else [])]
    with tempfile.TemporaryDirectory() as folder:
        report, pins = Path(folder) / "report.json", Path(folder) / "pins.txt"
        pins.write_text(f"torch=={_version('torch')}\n" if _version("torch") else "")
        options = ["-q", "--root-user-action=ignore", "--report", report, "-c", pins]
        command = [sys.executable, "-m", "pip", "install", *options]
        command += [word for file in files for word in ("-r", file)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RunError(
                f"pip could not install {' and '.join(files)}: {said}; run this cell again"
            )
        came = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    importlib.invalidate_caches()
    return [f"{item['name']} {item['version']}" for item in came]


def runtime_words() -> str:
    """What of this runtime has moved since the project was last run with it."""
    moved = []
    for line in CHECKED.read_text().split():
        name, checked = line.split("==")
        found = _version(name).split("+")[0]
        if name == "python":  # its third number changes nothing
            found, checked = (v.rpartition(".")[0] for v in (platform.python_version(), checked))
        if found != checked:
            moved.append(f"{name} {found or 'missing'} (checked with {checked})")
    return f"runtime    {', '.join(moved) or 'as this was checked with'}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
