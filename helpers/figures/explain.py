"""Load the notebooks' explanatory figures from assets/figures, where tools/figures draws them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "assets" / "figures"


def show_figure(name: str) -> Image.Image:
    """Return assets/figures/NAME.png as an image, or an image of one line of text if that file is missing.

    As a cell's output, the image stays visible in the saved notebook, which still runs after a figure was renamed.
    """
    path = FOLDER / f"{name}.png"
    if path.is_file():
        return Image.open(path)
    line = Image.new("RGB", (900, 40), "white")
    words = f"{path.name} is not in assets/figures"
    ImageDraw.Draw(line).text((10, 8), words, "black", ImageFont.load_default(size=20))
    return line
