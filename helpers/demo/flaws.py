"""Flawed images for the demo account, one for each reason for which 03 leaves an image out."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from helpers.demo.paint import paint_watercolour
from helpers.demo.scenes import DEMO_SCENES_FROM, random_scene

UNUSED = DEMO_SCENES_FROM + 100_000  # scenes from here on are not the account's own
CARD = (
    "commissions are open",
    "from march to june",
    "portraits, pets, places",
    "one sheet, 40 by 30 cm",
    "please write a message",
)


class Flaw(NamedTuple):
    """A flawed image for the demo: a scene's watercolour, damaged by the function `spoil`."""

    seed: int  # the scene's
    spoil: Callable[[Image.Image], Image.Image]
    words: str = ""  # if empty, the scene's

    @property
    def caption(self) -> str:
        return self.words or random_scene(self.seed).caption

    def paint(self) -> Image.Image:
        return self.spoil(paint_watercolour(random_scene(self.seed)))


def smaller_and_mirrored(picture: Image.Image) -> Image.Image:
    return ImageOps.mirror(picture.resize((80, 80), Image.Resampling.LANCZOS))


def cropped_and_brighter(picture: Image.Image) -> Image.Image:
    inner = ImageOps.crop(picture, picture.width // 16)
    return ImageEnhance.Brightness(inner).enhance(1.15)


def banner(picture: Image.Image) -> Image.Image:
    return picture.resize((256, 256), Image.Resampling.BICUBIC).crop((0, 96, 256, 176))


def text_card(_: Image.Image) -> Image.Image:
    card = Image.new("RGB", (256, 256), (246, 236, 222))
    draw, font = ImageDraw.Draw(card), ImageFont.load_default(size=20)
    for number, line in enumerate(CARD, 1):
        height = card.height * number / (len(CARD) + 1)
        draw.text((card.width / 2, height), line, (70, 50, 90), font, anchor="mm")
    return card


def screenshot(_: Image.Image) -> Image.Image:
    """Draw a screenshot of a chat on a phone, with bars instead of words."""
    screen = Image.new("RGB", (144, 256), (236, 240, 245))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, 144, 28), (60, 64, 72))
    draw.ellipse((8, 6, 24, 22), (200, 120, 120))
    draw.rectangle((32, 10, 84, 16), (230, 230, 230))
    top = 40
    for is_mine, lines in ((False, 2), (True, 1), (False, 3), (True, 2), (True, 1)):
        left, height = 48 if is_mine else 8, 14 * lines + 8
        bubble, words = ((92, 140, 240), "white") if is_mine else ((255, 255, 255), (120, 120, 126))
        draw.rounded_rectangle((left, top, left + 88, top + height), 8, bubble)
        for line in range(lines):
            right = left + (50 if line == lines - 1 else 80)
            draw.rectangle((left + 8, top + 8 + 14 * line, right, top + 13 + 14 * line), words)
        top += height + 10
    return screen


FLAWS = {  # by 03's kind of reason
    "too dark": Flaw(UNUSED, lambda picture: ImageEnhance.Brightness(picture).enhance(0.1)),
    "same file": Flaw(DEMO_SCENES_FROM + 1, lambda picture: picture),
    "near copy": Flaw(DEMO_SCENES_FROM + 2, smaller_and_mirrored),
    "mostly text": Flaw(UNUSED + 1, text_card, "words that say commissions are open"),
    "edited copy": Flaw(DEMO_SCENES_FROM + 3, cropped_and_brighter),
    "too small": Flaw(UNUSED + 2, lambda picture: picture.resize((48, 48))),
    "odd one out": Flaw(UNUSED + 3, screenshot, "a chat on a phone"),
    "too blurry": Flaw(UNUSED + 4, lambda picture: picture.filter(ImageFilter.GaussianBlur(3))),
    "extreme aspect": Flaw(UNUSED + 5, banner),
}
