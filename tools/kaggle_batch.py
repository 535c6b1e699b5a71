"""The notebooks on a Kaggle GPU, from a terminal: a notebook of one cell that clones, installs, runs helpers.batch.

    python -m tools.kaggle_batch me demo --preset t4
    kaggle kernels push -p build/kaggle/demo --accelerator NvidiaTeslaT4
    kaggle kernels output me/annalaura-demo -p demo

`kaggle` is Kaggle's own command line. A push takes no parameters, so they are written into the cell. What is asked for
is checked here first, as helpers.batch checks it. The cell ends in time for its output to be kept: `--earlier` attaches
that output to the next push, which goes on.
"""

import argparse
import inspect
import json
import re
from pathlib import Path

from helpers.batch import read_command
from helpers.core.files import write_text
from helpers.core.process import run_command
from tools import colab_batch

ROOT = Path("../temp/annalaura-diffusion")  # outside what becomes output
HOURS = 11.5  # of 12: then it stops as by hand, and saves
STOPPED = 124  # the status of `timeout`
SEVERAL = re.compile("[_-]+")  # Kaggle makes one hyphen of them, and another address
CELL = """# {command}
import subprocess
import sys
from pathlib import Path

RELEASE = {release!r}


{functions}

root = Path({root!r})
root.parent.mkdir(exist_ok=True)
failed = make_ready(root, {repository!r}, {ref!r})
batch = [sys.executable, "-m", "helpers.batch", *{arguments!r}]
failed = failed or say("timeout", "--signal", "INT", "{seconds}", *batch, cwd=root)
if failed == {stopped}:
    print("stopped in time and saved: push again with --earlier to go on")
elif failed:
    raise RuntimeError(f"see above: status {{failed}}")"""


def cell(arguments: list[str], repository: str, ref: str | None, hours: float) -> str:
    """Return the code of the one cell."""
    return CELL.format(
        command=f"helpers.batch {' '.join(arguments)}",
        release=colab_batch.RELEASE,
        functions="\n\n".join(map(inspect.getsource, (colab_batch.say, colab_batch.make_ready))),
        root=str(ROOT),
        repository=repository,
        ref=ref,
        arguments=arguments,
        seconds=max(1, round(hours * 3600)),  # 0 would be no limit
        stopped=STOPPED,
    )


def write_kernel(folder: Path, owner: str, name: str, code: str, attached: dict[str, list]) -> None:
    """Write the notebook and its metadata as `kaggle kernels push -p FOLDER` takes them."""
    one = {"cell_type": "code", "id": "batch", "metadata": {}, "outputs": [], "source": code}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": [one | {"execution_count": None}], "metadata": {"kernelspec": kernel}}
    metadata = {
        "id": f"{owner}/{name}",
        "title": name,  # or its address is another
        "code_file": "batch.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_internet": True,
        "machine_shape": "NvidiaTeslaT4",
    }
    write_text(folder / "batch.ipynb", json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}))
    write_text(folder / "kernel-metadata.json", json.dumps(metadata | attached, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.kaggle_batch", description=__doc__)
    parser.add_argument("owner", help="your name on Kaggle")
    parser.add_argument("run", help="the run's name; what helpers.batch takes may follow")
    parser.add_argument("--name", help="of the notebook there; unless told annalaura-RUN")
    parser.add_argument("--earlier", action="append", default=[], metavar="OWNER/NAME")
    parser.add_argument("--dataset", action="append", default=[], metavar="OWNER/NAME")
    parser.add_argument("--hours", type=float, default=HOURS)
    parser.add_argument("--repository", default=colab_batch.REPOSITORY)
    parser.add_argument("--ref", help=f"a tag or branch; unless told {colab_batch.RELEASE}")
    args, rest = parser.parse_known_args()
    read_command([args.run, *rest])  # refuses what would be refused there
    name = args.name or SEVERAL.sub("-", f"annalaura-{args.run}".lower()).strip("-")
    folder = Path("build/kaggle") / args.run
    attached = {"kernel_sources": args.earlier, "dataset_sources": args.dataset}
    code = cell([args.run, *rest], args.repository, args.ref, args.hours)
    write_kernel(folder, args.owner, name, code, attached)
    print(f"kaggle kernels push -p {folder} --accelerator NvidiaTeslaT4")


if __name__ == "__main__":
    run_command(main)
