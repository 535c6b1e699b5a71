"""03: one example of each reason to leave a picture out, a post on one side of the split, the suffix."""

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from helpers.config import DatasetConfig
from helpers.dataset.quality import measure
from helpers.dataset.resemblance import find_copies, find_edited_copies, hash_image
from helpers.demo.scenes import DEMO_SCENES_FROM, SUFFIX, random_scene
from tools.figures.drawn import BEAR, CAT, FROG, RABBIT, alike, watercolour
from tools.figures.inference import PROMPTS, tuned_pictures
from tools.figures.sheet import BLUE, GREEN, GREY, PALE, RED, WIDTH_PX, Sheet


def reasons() -> Sheet:
    """Each flawed picture with the figure that `measure` gives it and the setting that it misses."""
    config, good = DatasetConfig(), watercolour(CAT, 256)
    dark = ImageEnhance.Brightness(watercolour(FROG, 256)).enhance(0.12)
    blurred = watercolour(RABBIT, 256).filter(ImageFilter.GaussianBlur(9))
    card, strip = _text_card(), watercolour(BEAR, 256).crop((0, 90, 256, 154))
    usual = [measure(watercolour(random_scene(DEMO_SCENES_FROM + i), 256)) for i in range(12)]
    median = float(np.median([quality.sharpness for quality in usual]))
    text, aspect = measure(card).text_share, strip.width / strip.height
    brightness, share = measure(dark).brightness, measure(blurred).sharpness / median
    assert brightness < config.min_brightness and share < config.min_sharpness
    assert text > config.max_text_share and aspect > config.max_aspect
    framed = Image.new("RGB", (256, 256), "#f5f5f0")
    framed.paste(ImageEnhance.Brightness(good).enhance(1.15).resize((232, 232)), (12, 12))
    mirrored = good.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    looks = [hash_image(image) for image in (good, mirrored, framed)]
    assert (0, 1) in find_copies(looks, config.max_hash_bits)
    edited = find_edited_copies(looks, config.min_likeness)
    assert {0, 2} in [{pair.one, pair.other} for pair in edited]
    examples = (
        (good, "kept", "the sharpest", 1.0),
        (mirrored, "a copy", "mirrored", 1.0),
        (framed, "an edited copy", "bright, framed", 1.0),
        (watercolour(CAT, 48), "too small", f"48 px, needs {config.min_side_px}", 0.3),
        (dark, "too dark", f"{brightness:.0f}, needs {config.min_brightness:.0f}", 1.0),
        (blurred, "too blurry", f"{share:.1%} of usual", 1.0),
        (card, "mostly text", f"{text:.0%} of its height", 1.0),
        (strip, "too long", f"{aspect:g} : 1, at most {config.max_aspect:g}", 1.0),
    )
    sheet = Sheet(660)
    sheet.title("Why a picture is left out")
    for i, (image, name, figure, scale) in enumerate(examples):
        x, y = 20 + 218 * (i % 4), 64 + 300 * (i // 4)
        sheet.box(x, y, 206, 206, PALE)
        width = 206 * scale
        height = width * image.height / image.width
        sheet.picture(image, x + (206 - width) / 2, y + (206 - height) / 2, width)
        sheet.write(x + 103, y + 230, name, 24, GREEN if i == 0 else RED, "center", weight="bold")
        sheet.write(x + 103, y + 262, figure, 23, GREY, "center")
    return sheet


def _text_card() -> Image.Image:
    image = Image.new("RGB", (256, 256), "#fff6e5")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=17)
    lines = (
        "My shop opens again", "on Friday at noon!", "Prints, stickers and", "postcards of all the",
        "animals, sent all over", "the world. Thank you", "for being so patient.", "See you there, Mira",
    )  # fmt: skip
    for row, line in enumerate(lines):
        draw.text((24, 14 + 29 * row), line, "#30243c", font)
    return image


def split() -> Sheet:
    posts = {  # three pictures of a cat, two of a bear, two of a rabbit, one of a frog
        name: alike(scene, count)
        for name, scene, count in (("A", CAT, 3), ("B", BEAR, 2), ("C", RABBIT, 2), ("D", FROG, 1))
    }
    pictures = [(name, scene) for name, scenes in posts.items() for scene in scenes]
    mixed = _sides(pictures, {2, 4})
    whole = _sides(pictures, {5, 6})
    sheet = Sheet(500)
    rows = (
        ("✗ picture by picture: the exam was seen before", RED, mixed),
        ("✓ post by post: the exam is new", GREEN, whole),
    )
    for row, (words, colour, sides) in enumerate(rows):
        top = 14 + 250 * row
        sheet.write(16, top + 20, words, 26, colour, weight="bold")
        for left, width, name, shown in (
            (10, 630, "training", sides[0]),
            (660, 230, "held out", sides[1]),
        ):
            sheet.box(left, top + 48, width, 170)
            sheet.write(left + 14, top + 70, name, 23, BLUE if name == "training" else GREY)
            for i, (post, scene) in enumerate(shown):
                x = left + 14 + 103 * i
                sheet.picture(watercolour(scene, 128), x, top + 90, 96)
                sheet.write(x + 48, top + 202, f"post {post}", 22, GREY, "center")
    return sheet


def _sides(pictures: list, held_out: set[int]) -> tuple[list, list]:
    training = [picture for i, picture in enumerate(pictures) if i not in held_out]
    return training, [pictures[i] for i in sorted(held_out)]


def suffix() -> Sheet:
    """The trained demo's pictures at one seed, without the suffix and with it."""
    prompts = PROMPTS[:3]
    without, styled = tuned_pictures(prompts), tuned_pictures([p + SUFFIX for p in prompts])
    sheet = Sheet(720)
    rows = (
        ("the caption alone", GREY, without),
        (f"the caption and “{SUFFIX.strip()}”", BLUE, styled),
    )
    for row, (words, colour, images) in enumerate(rows):
        top = 10 + 355 * row
        sheet.write(WIDTH_PX / 2, top + 20, words, 26, colour, "center", weight="bold")
        for i, image in enumerate(images):
            sheet.picture(image, 15 + 295 * i, top + 48, 280)
    return sheet
