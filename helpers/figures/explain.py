"""Load the notebooks' explanatory figures from assets/figures, where tools/figures draws them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """Return assets/figures/NAME.png as an image, or an image of a line of text if the file is missing."""
    path = FOLDER / f"{name}.png"
    if path.is_file():
        return Image.open(path)
    line = Image.new("RGB", (900, 40), "white")  # a saved notebook may name a figure of old
    words = f"{path.name} is not in assets/figures"
    ImageDraw.Draw(line).text((10, 8), words, "black", ImageFont.load_default(size=20))
    return line
