"""Line art is no text: what repeats, or is denser or sparser than letters, is a pattern."""

import math
import random

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from helpers.config import DatasetConfig
from helpers.dataset.quality import text_share

LIMIT = DatasetConfig().max_text_share
SIDE = 640
WORDS = "commissions are open again this week please write me a message and thank you all for reading".split()
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSans-BoldOblique", "DejaVuSansMono", "STIXGeneral")


def sheet(seed):
    rng = random.Random(seed)
    image = Image.new("RGB", (SIDE, SIDE), "white")
    return rng, image, ImageDraw.Draw(image), rng.choice((20, 28, 36, 48))


def dots(seed):
    rng, image, draw, gap = sheet(seed)
    for y in range(gap, SIDE - gap // 2, gap):
        for x in range(gap, SIDE - gap // 2, gap):
            r, a, b = gap * 0.28, x + rng.uniform(-2, 2), y + rng.uniform(-1, 1)
            fill = "black" if seed % 2 else None
            draw.ellipse([a - r, b - r, a + r, b + r], fill, "black", 3)
    return image


def bricks(seed):
    rng, image, draw, gap = sheet(seed)
    for row, y in enumerate(np.arange(8, SIDE - gap, gap * 0.8 + 5)):
        x = -(row % 2) * gap
        while x < SIDE:
            width = 2 * gap + rng.uniform(-4, 4)
            draw.rectangle([x, y, x + width - 5, y + gap * 0.8], outline="black", width=3)
            x += width
    return image


def hatching(seed):
    rng, image, draw, gap = sheet(seed)
    for y in np.arange(8, SIDE - gap, gap * 1.3):
        x = 6.0
        while x < SIDE - 6:
            draw.line([x, y + rng.uniform(-1, 1), x + gap * 0.3, y + gap], "black", 2)
            x += rng.uniform(4.5, 7)
    return image


def flowers(seed):
    rng, image, draw, gap = sheet(seed)
    for y in np.arange(gap, SIDE - gap * 0.4, gap * 1.3):
        x = gap * 0.7
        while x < SIDE - gap * 0.5:
            r = gap * 0.38 * rng.uniform(0.8, 1)
            for k in range(6):
                a = x + r * 0.6 * math.cos(k * math.pi / 3)
                b = y + r * 0.6 * math.sin(k * math.pi / 3)
                draw.ellipse([a - r * 0.4, b - r * 0.4, a + r * 0.4, b + r * 0.4], None, "black", 2)
            x += gap * rng.uniform(0.95, 1.3)
    return image


def scales(seed):
    _, image, draw, gap = sheet(seed)
    for row, y in enumerate(np.arange(6, SIDE - gap, gap * 0.95)):
        for x in np.arange(-(row % 2) * gap / 2, SIDE, gap):
            draw.arc([x, y, x + gap * 0.9, y + gap * 0.85], 0, 180, "black", 3)
    return image


def waves(seed):
    _, image, draw, gap = sheet(seed)
    for y in np.arange(gap, SIDE - gap, gap):
        points = [(x, y + gap * 0.25 * math.sin(4 * x / gap)) for x in range(5, SIDE - 5, 2)]
        draw.line(points, "black", 3)
    return image


def leaves(seed):
    rng, image, draw, gap = sheet(seed)
    for y in np.arange(gap, SIDE - gap * 0.5, gap * 1.2):
        x = gap * 0.6
        while x < SIDE - gap * 0.5:
            angle, half = rng.uniform(0, 3.1), gap * 0.42
            a, b = half * math.cos(angle), half * math.sin(angle) * 0.9
            draw.line([x - a, y - b, x + a, y + b], "black", 3)
            draw.ellipse(
                [x - half * 0.4, y - half * 0.6, x + half * 0.4, y + half * 0.6], None, "black", 2
            )
            x += gap * rng.uniform(0.8, 1.2)
    return image


@pytest.mark.parametrize("draw", [dots, bricks, hatching, flowers, scales, waves, leaves])
def test_patterns_in_rows_are_kept(draw):
    """All would be left out by rows and strokes alone."""
    shares = [text_share(draw(seed).convert("L")) for seed in range(10)]
    assert max(shares) <= LIMIT
    inverted = [text_share(ImageOps.invert(draw(seed).convert("L"))) for seed in range(4)]
    assert max(inverted) <= LIMIT


def card(seed, lines, font, size):
    rng = random.Random(seed)
    image = Image.new("RGB", size, (238, 230, 220))
    path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
    letters = ImageFont.truetype(path, int(size[1] / (lines + 2) * 0.62))
    for line in range(lines):
        words = ""
        while letters.getlength(words) < size[0] * rng.uniform(0.6, 0.85):
            words += rng.choice(WORDS) + " "
        place = size[0] / 18, size[1] * (line + 1) / (lines + 2)
        ImageDraw.Draw(image).text(place, words, (40, 30, 60), letters)
    return image


def test_cards_of_text_are_told_in_every_font():
    cards = [
        card(seed, lines, font, size)
        for seed, (lines, size) in enumerate(
            [(9, (540, 540)), (14, (540, 540)), (11, (1080, 1350)), (18, (1080, 1350))]
        )
        for font in FONTS
    ]
    found = [text_share(image.convert("L")) > LIMIT for image in cards]
    assert np.mean(found) >= 0.95
