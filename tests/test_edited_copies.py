"""Edited copies are clustered, unrelated drawings are not, and a series can be told as one post."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from helpers.config import DatasetConfig
from helpers.core.errors import RunError
from helpers.dataset.curate import curate
from helpers.dataset.resemblance import find_edited_copies, hash_image
from helpers.dataset.split import split
from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import random_scene
from tests.conftest import make_dataset
from tests.test_curate import put

LIKENESS = DatasetConfig().min_likeness


def cropped(left, top, right, bottom):
    """Parts of each side cut away."""

    def crop(image):
        w, h = image.size
        box = w * left, h * top, w * (1 - right), h * (1 - bottom)
        return image.crop(tuple(round(end) for end in box))

    return crop


def lettered(image):
    image, side = image.copy(), min(image.size)
    font = ImageFont.load_default(size=side // 14)
    place = image.width * 0.5, image.height * 0.88
    ImageDraw.Draw(image).text(
        place, "@some.artist", (30, 30, 30), font, stroke_width=1, stroke_fill="white"
    )
    return image


def framed(share, colour):
    return lambda image: ImageOps.expand(image, round(share * max(image.size)), colour)


def enhanced(kind, factor):
    return lambda image: kind(image).enhance(factor)


EDITS = {
    "brightness x1.15": enhanced(ImageEnhance.Brightness, 1.15),
    "brightness x1.3": enhanced(ImageEnhance.Brightness, 1.3),
    "brightness x0.8": enhanced(ImageEnhance.Brightness, 0.8),
    "contrast x1.3": enhanced(ImageEnhance.Contrast, 1.3),
    "contrast x0.7": enhanced(ImageEnhance.Contrast, 0.7),
    "saturation x1.5": enhanced(ImageEnhance.Color, 1.5),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "tint": lambda image: Image.blend(image, Image.new("RGB", image.size, (255, 200, 120)), 0.25),
    "sepia": lambda image: ImageOps.colorize(image.convert("L"), (60, 30, 10), (255, 240, 210)),
    "autocontrast": lambda image: ImageOps.autocontrast(image, cutoff=1),
    "crop 2%": cropped(0.02, 0.02, 0.02, 0.02),
    "crop 5%": cropped(0.05, 0.05, 0.05, 0.05),
    "crop 10%": cropped(0.1, 0.1, 0.1, 0.1),
    "crop of one side": cropped(0, 0, 0.1, 0),
    "crop askew": cropped(0.07, 0.03, 0.02, 0.08),
    "white border": framed(0.06, "white"),
    "black border": framed(0.04, "black"),
    "small text": lettered,
    "bright, cropped, JPEG 60": lambda image: EDITS["crop 5%"](EDITS["brightness x1.15"](image)),
}


def is_found(one, other):
    return bool(list(find_edited_copies([one, other], LIKENESS)))


@pytest.mark.parametrize("paint", [paint_watercolour, paint_flat])
@pytest.mark.parametrize("count", [40, pytest.param(857, marks=pytest.mark.soak)])
def test_edited_copies_are_found_and_unrelated_drawings_are_not(paint, count):
    drawings = [paint(random_scene(seed)) for seed in range(count)]
    looks = [hash_image(drawing) for drawing in drawings]
    unrelated = {frozenset((p.one, p.other)) for p in find_edited_copies(looks, LIKENESS)}
    assert len(unrelated) <= 0.001 * count * (count - 1), unrelated
    some = range(0, count, max(1, count // 20))
    found = {
        name: np.mean([is_found(looks[i], hash_image(edit(drawings[i]))) for i in some])
        for name, edit in EDITS.items()
    }
    assert min(found.values()) >= 0.95, found


def test_a_drawing_with_one_thing_of_another_colour_is_no_copy():
    drawing = paint_flat(random_scene(4))
    repainted = drawing.copy()
    w, h = drawing.size
    area = (w // 4, h // 4, 3 * w // 4, 3 * h // 4)
    red, green, blue = drawing.crop(area).split()
    repainted.paste(Image.merge("RGB", (blue, red, green)), area)
    assert not list(find_edited_copies([hash_image(drawing), hash_image(repainted)], LIKENESS))


def test_flat_pictures_and_fine_patterns_are_no_copies_of_one_another():
    flat = [Image.new("RGB", (90, 90), (40 * i, 100, 120)) for i in range(5)]
    dithered = [image.convert("P") for image in flat]
    looks = [hash_image(image.convert("RGB")) for image in (*flat, *dithered)]
    assert not list(find_edited_copies(looks, LIKENESS))


def test_edited_copies_are_left_out_with_their_reason_and_stand_on_one_side(workplace, tmp_path):
    folder = tmp_path / "art"
    drawings = [paint_watercolour(random_scene(i)) for i in range(16)]
    for i, drawing in enumerate(drawings):
        put(folder, f"w{i:02d}", drawing)
    for i, name in enumerate(("grey", "brightness x1.3", "crop 5%", "white border")):
        put(folder, f"x{i}", EDITS[name](drawings[i]))
    run = make_dataset("art", folder)
    kept, left_out = curate(DatasetConfig(run="art", max_oddness=1e6), run)
    assert len(kept) == 16 and len(left_out) == 4
    assert set(left_out["kind"]) <= {"edited copy", "near copy"}
    for row in left_out.itertuples():  # each with its own original, whichever of the two stays
        assert {int(row.file_name[1:].split("_")[0]), int(row.cluster[1:].split("_")[0])} in (
            {0}, {1}, {2}, {3},
        )  # fmt: skip
    words = left_out[left_out["kind"] == "edited copy"]["reason"]
    assert words.str.contains(r"1.png edited: their edges are \d\.\d\d alike").all()
    assert words.str.endswith(f"min_likeness is {LIKENESS}").all() and len(words) >= 2
    config = DatasetConfig(run="art", max_oddness=1e6, min_likeness=1.0, max_hash_bits=0)
    _, still_out = curate(config, run)
    assert set(still_out["kind"]) <= {"near copy"} and len(still_out) <= 1


def test_a_series_told_by_its_names_is_held_out_as_one_post(workplace, tmp_path):
    folder = tmp_path / "art"
    for i in range(7):
        put(folder, f"cats{i + 1}", paint_watercolour(random_scene(i)))
    for i in range(9):
        put(folder, f"other{i}", paint_watercolour(random_scene(20 + i)))
    run = make_dataset("art", folder)
    for seed in range(12):
        kept, _ = curate(DatasetConfig(run="art", series=("CATS*",)), run)
        sides = split(kept, 0.3, seed)
        cats = kept["file_name"].str.startswith("cats")
        assert sides[cats].nunique() == 1 and cats.sum() == 7
        assert set(sides) == {"train", "validation"}
    with pytest.raises(RunError, match=r"series has 'dogs\*', which matches no image's name"):
        curate(DatasetConfig(run="art", series=("dogs*",)), run)


def test_a_table_of_an_older_version_is_split_without_a_series():
    images = pd.DataFrame({"file_name": list("abcd"), "shortcode": list("wxyz")})
    assert set(split(images, 0.3, 0)) == {"train", "validation"}
