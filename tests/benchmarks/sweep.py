"""What a sweep promises, measured: `make bench`.

Two workers on one PostgreSQL, a core each, against one worker with the same eight trials of the demo's model; and a
sweep over a far too low, a good and a far too high learning rate on the demo. Fails where a promise is not kept.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from helpers.config import TrainConfig, configure
from helpers.core.run import Run
from helpers.figures.trials import TrialRow, read_trials
from helpers.train.sweep.runner import run_trials
from tests.postgres import postgres

RATES = "0.000001,0.001,0.3"
FIXED = {"prior_share": 0.0, "tracker": "none", "preview_every_steps": 1000}


def make_run(name: str, posts: int) -> Run:
    """A run of the demo's drawn pictures that has come as far as 03."""
    command = [sys.executable, "-m", "helpers.batch", name, "--only", "01,02,03", "-p", "more"]
    subprocess.run([*command, str({"demo_posts": posts})], check=True, stdout=subprocess.DEVNULL)
    return Run(name)


def sweep_seconds(run: Run, steps: int, workers: int, address: str) -> float:
    """The time that so many workers take for eight trials, each on a core of its own."""
    typed = ["-p", "learning_rate", "1e-4..2e-3", "--trials", "8", "--storage", "postgresql"]
    settings = FIXED | {"max_steps": steps, "validate_every_steps": steps // 4}
    typed += [word for name, value in settings.items() for word in ("-p", name, str(value))]
    environment = os.environ | {"OPTUNA_STORAGE": address, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    started = []
    for core in range(workers):
        command = [sys.executable, "-m", "helpers.train.sweep", run.name, *typed]
        log = (run.folder / f"worker-{core}.log").open("w")
        pinned = ["taskset", "-c", str(core), *command]
        started.append(subprocess.Popen(pinned, env=environment, stdout=log, stderr=log))
    if any([process.wait() for process in started]):
        sys.exit(f"a worker of {run.name} failed: see {run.folder}/worker-*.log")
    return time.perf_counter() - began


def runs_of_trials(run: Run) -> int:
    """How often a trial was begun, over all workers."""
    logs = [path.read_text() for path in run.folder.glob("worker-*.log")]
    return sum(text.count(" steps\n") + text.count(": goes on from") for text in logs)


def rank_rates(run: Run, steps: int) -> list[TrialRow]:
    rates = [float(rate) for rate in RATES.split(",")]
    given = FIXED | {"run": run.name, "max_steps": steps, "sweep": {"learning_rate": rates}}
    for line in run_trials(configure(TrainConfig, given), run):
        print(f"    {line}", flush=True)
    return read_trials(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=240, help="of each of the eight trials")
    parser.add_argument("--demo-steps", type=int, default=450)
    args = parser.parse_args()
    stamp = int(time.time())
    ranked = rank_rates(make_run(f"sweep-{stamp}-rates", 100), args.demo_steps)
    good, low, high = ranked
    one, two = make_run(f"sweep-{stamp}-one", 40), Run(f"sweep-{stamp}-two")
    shutil.copytree(one.folder, two.folder)
    with postgres() as address:
        alone = sweep_seconds(one, args.steps, 1, address)
        both = sweep_seconds(two, args.steps, 2, address)
    budget = args.demo_steps * 8
    kept = {
        f"two workers take {both / alone:.2f} of one's {alone:.0f} s, <= 0.65": both
        <= 0.65 * alone,
        f"trials begun by the two: {runs_of_trials(two)}, 8": runs_of_trials(two) == 8,
        f"rates by rank: {[r.params['learning_rate'] for r in ranked]}": (
            [r.params["learning_rate"] for r in ranked] == [1e-3, 1e-6, 0.3]
        ),
        f"validation loss {good.value:.4f} and {low.value:.4f}": good.value < 0.7 * low.value,
        f"the diverging one {high.state} at {high.images / budget:.0%} of its budget, < 50%": (
            high.state == "pruned" and high.images < budget / 2
        ),
    }
    for words, is_kept in kept.items():
        print(f"{words}{'' if is_kept else '   NOT KEPT'}")
    if not all(kept.values()):
        sys.exit("a promise is not kept")


if __name__ == "__main__":
    Path("runs").mkdir(exist_ok=True)
    main()
