"""The explaining figures of the notebooks, drawn beforehand by tools/figures."""

from pathlib import Path

from PIL import Image

from helpers.core.errors import RunError

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """A figure of assets/figures as an image, which a notebook shows and keeps when it is saved.

    Raises RunError if there is none of this name.
    """
    path = FOLDER / f"{name}.png"
    if not path.is_file():
        raise RunError(
            f"{path.name} is not in assets/figures: run Setup again, or python -m tools.figures {name}"
        )
    return Image.open(path)
