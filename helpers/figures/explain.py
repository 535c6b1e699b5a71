"""Load the notebooks' explanatory figures from assets/figures, where tools/figures draws them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """Load assets/figures/NAME.png as an image, which stays visible in the saved notebook.

    If the file is missing, the image is a line of text, so that a saved notebook runs after a figure was renamed.
    """
    path = FOLDER / f"{name}.png"
    if path.is_file():
        return Image.open(path)
    line = Image.new("RGB", (900, 40), "white")
    words = f"{path.name} is not in assets/figures"
    ImageDraw.Draw(line).text((10, 8), words, "black", ImageFont.load_default(size=20))
    return line
