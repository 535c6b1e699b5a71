"""Load the notebooks' explaining figures, which tools/figures draws into assets/figures."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """Load assets/figures/NAME.png as an image, which a notebook shows and keeps in its saved copy.

    A missing file gives a line in its place: a saved notebook goes on where a figure was renamed since.
    """
    path = FOLDER / f"{name}.png"
    if path.is_file():
        return Image.open(path)
    line = Image.new("RGB", (900, 40), "white")
    words = f"{path.name} is not in assets/figures"
    ImageDraw.Draw(line).text((10, 8), words, "black", ImageFont.load_default(size=20))
    return line
