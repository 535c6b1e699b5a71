"""The notebooks on a fresh Colab machine, from a terminal: clones, installs, runs helpers.batch, packs the run.

    colab run --gpu T4 --keep -s art --timeout 14400 tools/colab_batch.py demo --preset t4
    colab download -s art content/demo.tar demo.tar && colab stop -s art

`colab` is Google's google-colab-cli, which sends this one file to a machine that has nothing else of the
project: so it stands outside helpers/ and takes the standard library alone. It clones the release, or the newest
main where that tag is not to be had, and leaves the rest to what it cloned: helpers.host.setup, helpers.batch.
It ends as the notebooks do, with an exit status; the pack is RUN.tar when all went well, and RUN-stopped.tar when not.
"""

import argparse
import os
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = "https://github.com/annalaura-diffusion/annalaura-diffusion"
RELEASE = "v0.3.0"
NOT_PACKED = ("cache", "checkpoints")  # can be computed again; resume from Google Drive instead
MOST_BYTES = 200_000_000  # of a file: `colab download` holds all it fetches in memory, as text


def say(*command: str, cwd: Path) -> int:
    """Run a command and print its lines as they come; a notebook's cell shows no other output."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        print(line, end="", flush=True)
    return process.wait()


def make_ready(root: Path, repository: str, ref: str) -> int:
    """Clone and install what is not there yet, as a notebook's Setup does; 0 when all is."""
    if not (root / "helpers").is_dir():
        clone = ("git", "-c", "advice.detachedHead=false", "clone", "-q", "--depth", "1")
        failed = say(*clone, "--branch", ref or RELEASE, repository, str(root), cwd=root.parent)
        if failed and not ref:
            print("taking the newest main", flush=True)
            failed = say(*clone, repository, str(root), cwd=root.parent)
        if failed:
            return failed
    return say(sys.executable, "-m", "helpers.setup", cwd=root)


def take_keys(path: Path) -> None:
    """Put the file's NAME=VALUE lines into the environment, and take the file off this machine."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            os.environ[name.strip()] = value.strip()
    path.unlink()


def unpack(path: Path, root: Path) -> None:
    """A run that began elsewhere, as `tar -cf my-art.tar -C runs my-art` packs it."""
    (root / "runs").mkdir(exist_ok=True)
    with tarfile.open(path) as tar:
        tar.extractall(root / "runs", filter="data")


def pack(root: Path, run: str, failed: int) -> Path:
    """The run's folder as one file beside the clone, for `colab download`."""
    for path in (root.parent / f"{run}.tar", root.parent / f"{run}-stopped.tar"):
        path.unlink(missing_ok=True)
    target = root.parent / (f"{run}-stopped.tar" if failed else f"{run}.tar")

    def fits(file: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if file.size <= MOST_BYTES:
            return file
        print(
            f"not packed, {file.size / 1e9:.1f} GB: {file.name} (Drive or push_to takes it along)"
        )
        return None

    with tarfile.open(target, "w") as tar:
        for path in sorted((root / "runs" / run).glob("*")):
            if path.name not in NOT_PACKED:
                tar.add(path, f"{run}/{path.name}", filter=fits)
    return target


def main() -> None:
    parser = argparse.ArgumentParser()  # in a kernel __doc__ is not this file's
    parser.add_argument("run", help="the run's name; what helpers.batch takes may follow")
    parser.add_argument("--keys", type=Path, help="a file of NAME=VALUE lines, uploaded before")
    parser.add_argument("--begun", type=Path, help="a tar of the run so far, uploaded before")
    parser.add_argument("--repository", default=REPOSITORY)
    parser.add_argument("--ref", help=f"a tag or branch; unless told {RELEASE}, or else main")
    parser.add_argument("--root", type=Path, default=Path("/content/annalaura-diffusion"))
    args, rest = parser.parse_known_args()
    failed = make_ready(args.root, args.repository, args.ref)
    if not failed:
        if args.begun:
            unpack(args.begun, args.root)
        if args.keys:
            take_keys(args.keys)
        failed = say(sys.executable, "-m", "helpers.batch", args.run, *rest, cwd=args.root)
        print(f"packed {pack(args.root, args.run, failed)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
