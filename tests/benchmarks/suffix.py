"""What a suffix that captions have already costs: the demo, and the demo's own dataset taken in again by the hub's way.

    python -m tests.benchmarks.suffix          walks both where they are missing, some ten minutes on two cores
    python -m tests.benchmarks.suffix --list   the seed's list in its size, 857 rows, through 01 to 03 alone

The dataset's texts end in the suffix, which 03 adds. Fails unless both style gains lie in each other's intervals.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image

from helpers.core.run import Run
from helpers.core.suffix import strip_suffix
from helpers.dataset.dataset_files import read_records

SEEDS = " in an annalaura watercolor drawing style"
ROWS = 857
DIRECT, AGAIN = Run("demo"), Run("demo-again")


def walk(run: Run, *given: str) -> float:
    """The seconds of the notebooks, 0 where the report is there."""
    if run.report_json.is_file():
        return 0.0
    began = time.perf_counter()
    command = [sys.executable, "-m", "helpers.batch", run.name, *given]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{run.name} did not end well")
    return time.perf_counter() - began


def gain(run: Run) -> dict[str, float]:
    return json.loads(run.report_json.read_text())["style_gain"]


def times_in(texts: list[str], suffix: str) -> dict[int, int]:
    """How many texts end in the suffix how often."""
    counts: Counter[int] = Counter()
    for text in texts:
        bare = strip_suffix(text, suffix)
        counts[text[len(bare) :].count(suffix.strip())] += 1
    return dict(counts)


def compare() -> None:
    walk(DIRECT, "--preset", "demo")
    given = {"source": "hub", "dataset_id": str(DIRECT.dataset)}
    walk(AGAIN, "--preset", "demo", *(w for k, v in given.items() for w in ("-p", k, v)))
    suffix = AGAIN.read_config("dataset")["suffix"]
    texts = [record.text for record in read_records(AGAIN.dataset)]
    print(
        f"texts of {AGAIN.dataset} by how often they end in the suffix: {times_in(texts, suffix)}"
    )
    direct, again = gain(DIRECT), gain(AGAIN)
    for run, figures in ((DIRECT, direct), (AGAIN, again)):
        print(
            f"{run.name:12} style gain {figures['value']:.2f} ({figures['low']:.2f} to {figures['high']:.2f})"
        )
    if not (
        direct["low"] <= again["value"] <= direct["high"]
        or again["low"] <= direct["value"] <= again["high"]
    ):
        sys.exit("not kept: the style gains differ by more than their intervals")


def walk_list() -> None:
    """A list like the seed's, in its size and form: an index column, `prompt`, each caption with its suffix."""
    name = f"seed-list-{int(time.time())}"
    with tempfile.TemporaryDirectory() as place:
        rows = []
        for i in range(ROWS):
            file_name = f"C{i // 3:03d}ZxYwVu9_{i % 3 + 1}.jpg"
            image = Image.effect_noise((64, 64), 40 + i % 60).convert("RGB")
            image.putpixel((i % 64, i // 64), (255, 0, 0))
            image.save(Path(place) / file_name)
            rows.append((i, file_name, f"blue and yellow cats shopping at store {i}{SEEDS}"))
        with (Path(place) / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("", "file_name", "prompt"), *rows])
        for stage, given in (
            ("01", {"source": "folder", "folder": place}),
            ("02", {}),
            ("03", {"suffix": SEEDS, "more": "{'max_hash_bits': 0, 'min_sharpness': 0.0}"}),
        ):
            words = [w for k, v in given.items() for w in ("-p", k, v)]
            command = [sys.executable, "-m", "helpers.batch", name, "--only", stage, *words]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"{stage} did not end well")
    counts = times_in([record.text for record in read_records(Run(name).dataset)], SEEDS)
    print(f"of {ROWS} rows, by how often a text ends in the suffix: {counts}")
    if set(counts) != {1}:
        sys.exit("not kept: the suffix stands once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="the list of 857 rows alone")
    walk_list() if parser.parse_args().list else compare()


if __name__ == "__main__":
    main()
