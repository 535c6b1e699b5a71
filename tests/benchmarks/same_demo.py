"""Is the demo of two commits the same to the bit? For moves that are to change nothing.

    python -m tests.benchmarks.same_demo BEFORE AFTER

Each commit is checked out beside the repository and runs the demo's five notebooks, every process on one thread;
the trained weights, dataset/, samples/ and report.json (times aside) are compared file by file. Some eight minutes
a commit, kept in build/same_demo/ for the next comparison. Where a card alone is to differ, `--only` names what counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

TIMES = ("seconds", "made_at", "date")
FOLDERS = ("model", "dataset", "samples")
KEPT = Path("build/same_demo")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


def digests(run: Path) -> dict[str, str]:
    """A hash of each file of a run that is to be equal, by its path, and each figure of report.json."""
    found = {
        path.relative_to(run).as_posix(): sha256(path.read_bytes()).hexdigest()
        for folder in FOLDERS
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }
    report = json.loads((run / "report.json").read_text())
    figures = {name: value for name, value in report.items() if name not in TIMES}
    return found | {f"report.json {name}": json.dumps(value) for name, value in figures.items()}


def demo_of(commit: str) -> dict[str, str]:
    """What the demo of a commit comes to, run in a checkout of its own if that is not known yet."""
    sha = subprocess.check_output(["git", "rev-parse", commit], text=True).strip()
    kept = KEPT / f"{sha}.json"
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "checkout"
            subprocess.run(["git", "worktree", "add", "--detach", folder, sha], check=True)
            command = [sys.executable, "-m", "helpers.batch", "demo", "--preset", "demo"]
            subprocess.run(command, cwd=folder, env={**os.environ, **ONE_THREAD}, check=True)
            KEPT.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(digests(folder / "runs" / "demo")))
            subprocess.run(["git", "worktree", "remove", "--force", folder], check=True)
    return json.loads(kept.read_text())


def main() -> None:
    """Compare two commits; the exit status is 1 if anything differs."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("commits", nargs=2)
    asked.add_argument(
        "--only", nargs="*", default=[], help="what counts, by the start of its name"
    )
    options = asked.parse_args()
    before, after = map(demo_of, options.commits)
    names = sorted(before.keys() | after.keys())
    counted = [name for name in names if not options.only or name.startswith(tuple(options.only))]
    differ = [name for name in counted if before.get(name) != after.get(name)]
    print(f"{len(counted)} files and figures compared, {len(differ)} differ")
    for name in differ:
        print(f"  {name}: {before.get(name, 'not there')} | {after.get(name, 'not there')}")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
