"""Draw the figures into assets/figures/: `python -m tools.figures [NAME ...]`."""

import argparse
import sys

from tools.figures import FIGURES, FIGURES_DIR, FROM_A_RUN
from tools.figures.inference import TUNED

MAX_BYTES = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    names = parser.parse_args().names or [*FIGURES]
    if unknown := set(names) - set(FIGURES):
        sys.exit(f"{', '.join(sorted(unknown))}: there are {', '.join(FIGURES)}")
    FIGURES_DIR.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in FROM_A_RUN and not TUNED.is_dir():
            print(f"{name} stays as it is: {TUNED} is missing, run make demo first")
            continue
        sheet, path = FIGURES[name](), FIGURES_DIR / f"{name}.png"
        for colours in (128, 96, 64, 48, 32):
            image = sheet.image(colours)
            image.save(path, optimize=True)
            if path.stat().st_size <= MAX_BYTES:
                break
        size = f"{image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB"
        print(f"{path}: {size}", *sheet.collisions(), sep="\n  ")


if __name__ == "__main__":
    main()
