"""Load the notebooks' explaining figures, which tools/figures draws into assets/figures."""

from pathlib import Path

from PIL import Image

from helpers.core.errors import RunError

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """Load assets/figures/NAME.png as an image, which a notebook shows and keeps in its saved copy.

    Raises RunError if there is no such file.
    """
    path = FOLDER / f"{name}.png"
    if not path.is_file():
        raise RunError(
            f"{path.name} is not in assets/figures: run Setup again, or python -m tools.figures {name}"
        )
    return Image.open(path)
