"""Fit a picture to draw from, and its mask, to the size that is drawn."""

import math

from PIL import Image, ImageDraw, ImageStat

from helpers.core.decode import ImageError, Picture, decode
from helpers.core.errors import RunError

MAX_MPX = 200  # decoded, that many megapixels take 0.6 GB
STEP_PX = 8  # widths and heights are multiples of this
DRAWN_ANEW = "#d1495b"
SAME_SHAPE = 0.02  # by which the aspects of a picture and its mask may differ

Size = tuple[int, int]  # width and height, in pixels
Box = tuple[float, float, float, float]  # left, top, right and bottom, as shares of the picture


def read_upload(name: str, content: bytes) -> Picture:
    """Decode an uploaded picture. Raises RunError, with its name, if it is none or too large."""
    return _decode_upload(name, content, "white")


def read_mask(name: str, content: bytes) -> Image.Image:
    """Decode an uploaded mask, as `read_upload` does. What is transparent is not painted, and so black."""
    return _decode_upload(name, content, "black").image


def _decode_upload(name: str, content: bytes, ground: str) -> Picture:
    try:
        return decode(content, MAX_MPX, ground)
    except ImageError as error:
        raise RunError(f"{name} {error}: upload another picture") from None


def size_for(image: Image.Image, side_px: int) -> Size:
    """Return the size to draw a picture at: its own aspect, with as many pixels as a square of `side_px`.

    Both sides are multiples of 8, from about half of `side_px` to twice as much.
    """
    root = math.sqrt(image.width / image.height)
    sides = (STEP_PX * round(side / STEP_PX) for side in (side_px * root, side_px / root))
    width, height = (min(max(side, least_side(side_px)), 2 * side_px) for side in sides)
    return width, height


def least_side(side_px: int) -> int:
    """Return the least width or height that is drawn: half of `side_px`, as a multiple of 8."""
    return STEP_PX * math.ceil(side_px / 2 / STEP_PX)


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Return the middle of a picture, scaled to fill a size. A picture of that size is returned as it is."""
    if image.size == size:
        return image
    factor = max(size[0] / image.width, size[1] / image.height)
    across, down = size[0] / factor, size[1] / factor
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize(size, Image.Resampling.LANCZOS, box)


def share_cropped(image: Image.Image, size: Size) -> float:
    """Return the share of a picture that `fit` crops off."""
    ratio = (image.width / image.height) / (size[0] / size[1])
    return 1 - min(ratio, 1 / ratio)


def fit_mask(mask: Image.Image, picture: Image.Image, size: Size) -> Image.Image:
    """Return a mask in black and white (mode L), fitted as its picture is. White is drawn anew.

    Raises RunError if the mask has another shape than the picture, or no white.
    """
    ratio = (mask.width / mask.height) / (picture.width / picture.height)
    if abs(ratio - 1) > SAME_SHAPE:
        raise RunError(
            f"the mask is {mask.width} x {mask.height} px and the picture {picture.width} x {picture.height} px: "
            "give a mask of the picture's shape"
        )
    grey = mask.convert("L")
    if grey.size != picture.size:
        grey = grey.resize(picture.size, Image.Resampling.BILINEAR)
    return _check_mask(fit(grey, size).point(lambda level: 255 * (level >= 128)))


def rectangle_mask(box: Box, size: Size) -> Image.Image:
    """Return a mask that is white inside a rectangle. Raises RunError if the rectangle is empty."""
    width, height = size
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    mask = Image.new("L", size, 0)
    if right > left and bottom > top:
        ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), 255)
    return _check_mask(mask)


def _check_mask(mask: Image.Image) -> Image.Image:
    if not mask.getbbox():
        raise RunError(
            "the mask has no white, so nothing would be drawn: paint white what is drawn anew"
        )
    return mask


def show_mask(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return a picture with the part tinted that is drawn anew."""
    tinted = Image.blend(picture, Image.new("RGB", picture.size, DRAWN_ANEW), 0.5)
    return Image.composite(tinted, picture, mask)


def to_white_lines(sketch: Image.Image) -> Image.Image:
    """Return a sketch as white lines on black, as ControlNets for scribbles were trained; dark lines are inverted."""
    grey = sketch.convert("L")
    is_on_paper = ImageStat.Stat(grey).mean[0] > 128
    lines = grey.point(lambda level: 255 - level) if is_on_paper else grey
    return lines.convert("RGB")
