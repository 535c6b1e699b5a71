"""Edited copies of pictures of one's own choice: how many of each edit are found, and how many unrelated pairs.

    python -m tests.benchmarks.edited_copies FOLDER [FOLDER ...] --edited 40

FOLDER holds pictures of any format that 01 reads, none of them copies of one another: whoever runs this says which.
Pairs that are taken for copies are listed, since real sets hold real variants of one picture.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from helpers.config import DatasetConfig
from helpers.core.decode import ImageError, decode
from helpers.dataset.resemblance import find_edited_copies, hash_image
from tests.test_edited_copies import EDITS

SIDE_PX = 640
LIKENESS = DatasetConfig().min_likeness


def pictures(folder: Path) -> dict:
    """Name to picture, scaled to SIDE_PX; what is flat at a glance has no layout to compare and is left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            image = decode(path).image
        except ImageError:
            continue
        image.thumbnail((SIDE_PX, SIDE_PX))
        if np.asarray(image.resize((8, 8)).convert("L"), float).std() >= 2:
            found[path.stem] = image
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--edited", type=int, default=40, help="pictures of each folder to edit")
    args = parser.parse_args()
    for folder in args.folders:
        named = pictures(folder)
        names, images = list(named), list(named.values())
        looks = [hash_image(image) for image in images]
        began = time.process_time()
        taken = {
            frozenset((p.one, p.other)): p.likeness for p in find_edited_copies(looks, LIKENESS)
        }
        seconds, pairs = time.process_time() - began, len(names) * (len(names) - 1) // 2
        print(f"{folder.name}: {len(names)} pictures, {seconds:.1f} s")
        print(f"  taken for copies: {len(taken)} of {pairs} pairs ({len(taken) / pairs:.3%})")
        for pair, value in sorted(taken.items(), key=lambda item: item[1]):
            print(f"    {value:.2f} " + ", ".join(names[i] for i in pair))
        some = range(0, len(names), max(1, len(names) // args.edited))
        for name, edit in EDITS.items():
            hits = [
                any(find_edited_copies([looks[i], hash_image(edit(images[i]))], LIKENESS))
                for i in some
            ]
            print(f"  {name:26} {np.mean(hits):.0%} of {len(hits)}", flush=True)


if __name__ == "__main__":
    main()
