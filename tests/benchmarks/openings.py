"""Sixty docstring openings, drawn by a seed, for a person who has not seen the code to read.

    python -m tests.benchmarks.openings [SEED]

Whoever reads them marks each that had to be read twice; at most three may.
"""

import ast
import random
import sys
from pathlib import Path

HELPERS = Path(__file__).parent.parent.parent / "helpers"
COUNT = 60


def openings() -> list[tuple[str, str]]:
    """The first line of each docstring of helpers/, with the place that it stands at."""
    found = []
    for path in sorted(HELPERS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                if words := ast.get_docstring(node):
                    name = getattr(node, "name", "")
                    place = f"{path.relative_to(HELPERS.parent)} {name}".strip()
                    found.append((place, words.split("\n\n")[0].replace("\n", " ")))
    return found


def main() -> None:
    """Print the drawn ones, numbered."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for number, (place, words) in enumerate(random.Random(seed).sample(openings(), COUNT), 1):
        print(f"{number:2}  {place}\n    {words}")


if __name__ == "__main__":
    main()
