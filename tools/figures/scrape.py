"""01: a post and its files, what the border does to a picture, a damaged file, the permission."""

import io

from PIL import ExifTags, Image, ImageFile

from helpers.config import ScrapeConfig
from helpers.core.decode import ImageError, decode
from helpers.core.run import Run
from helpers.scrape import demo_account
from tests.profiles import PRIMARIES, rgb_profile
from tools.figures.drawn import BEAR, CAT, jpeg, watercolour
from tools.figures.sheet import BLUE, GREEN, GREY, PALE, RED, SKY, WIDTH_PX, Sheet

SIDEWAYS = 6  # EXIF orientation: to be turned by 90 degrees


def carousel() -> Sheet:
    """The demo's first post."""
    sheet = Sheet(520)
    sheet.title("One post, three pictures, three files")
    sheet.box(20, 60, 860, 268)
    for i, item in enumerate(demo_account.list_items(ScrapeConfig(), Run("demo")).items[:3]):
        left = 50 + 290 * i
        sheet.picture(Image.open(io.BytesIO(item.load())), left + 5, 76, 210)
        sheet.write(WIDTH_PX / 2 + 22 * (i - 1), 306, "●", 22, BLUE if i == 0 else GREY, "center")
        sheet.arrow((left + 110, 332), (left + 110, 372))
        sheet.box(left - 25, 376, 270, 48, SKY)
        sheet.write(left + 110, 400, f"{item.name}.jpg", 24, align="center")
    sheet.write(WIDTH_PX / 2, 456, "and a line for each in posts.jsonl:", align="center")
    sheet.write(
        WIDTH_PX / 2,
        492,
        "which post, whose, when, how large, with what permission",
        align="center",
    )
    return sheet


def border() -> Sheet:
    """A phone's JPEG, and what `decode` makes of it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = SIDEWAYS
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (47.0, 22.0, 7.0)})
    profile = rgb_profile(PRIMARIES["Display P3"], 2.2)
    upright = watercolour(BEAR, 320)
    phone = jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=exif, icc_profile=profile)
    stored, seen = Image.open(io.BytesIO(phone)), decode(phone).image
    assert stored.getexif().get_ifd(ExifTags.IFD.GPSInfo) and not seen.getexif()
    sheet = Sheet(570)
    sheet.title("A phone's picture, as it came and as it is used")
    sheet.picture(stored, 50, 70, 320)
    sheet.picture(seen, 530, 70, 320)
    sheet.arrow((395, 230), (505, 230), BLUE)
    for row, (before, after) in enumerate(
        (
            ("lies on its side", "upright"),
            ("colours of its own screen", "sRGB, as models expect"),
            ("says where it was taken", "pixels alone, no place"),
        )
    ):
        sheet.write(210, 424 + 36 * row, before, align="center", colour=GREY)
        sheet.write(690, 424 + 36 * row, after, align="center", colour=GREEN)
    sheet.write(210, 542, "kept as it came: images/", align="center")
    sheet.write(690, 542, "what is trained on: dataset/", align="center")
    return sheet


def damaged() -> Sheet:
    """A download that broke off: its header is whole, its pixels are not."""
    content = jpeg(watercolour(CAT, 320))
    broken = content[: len(content) * 55 // 100]
    header = Image.open(io.BytesIO(broken))
    try:
        decode(broken)
    except ImageError as error:
        reason = str(error)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    there = Image.open(io.BytesIO(broken)).convert("RGB")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    sheet = Sheet(420)
    sheet.title("A download that broke off")
    sheet.picture(there, 40, 80, 320)
    sheet.write(400, 116, "✓", 34, GREEN)
    sheet.write(450, 116, f"opens: JPEG, {header.width} × {header.height} px")
    sheet.write(400, 196, "✗", 34, RED)
    sheet.write(450, 196, "does not decode to its end")
    sheet.box(400, 250, 470, 130)
    sheet.write(420, 280, "rejected.jsonl says why:", colour=GREY)
    sheet.write(420, 336, _broken_in_two(reason), 22)
    return sheet


def _broken_in_two(text: str) -> str:
    middle = min((i for i, c in enumerate(text) if c == " "), key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


def permission() -> Sheet:
    sheet = Sheet(330)
    columns = (610, 790)
    sheet.write(30, 36, "permission", 26, weight="bold")
    for x, words in zip(columns, ("train in\nprivate", "make\npublic"), strict=True):
        sheet.write(x, 40, words, 24, align="center", weight="bold")
    for row, (name, may) in enumerate(
        (("private study", False), ("permission of the artist", True), ("own work", True))
    ):
        y = 122 + 78 * row
        sheet.box(10, y - 33, 880, 66, PALE)
        sheet.write(30, y, name, 26)
        sheet.write(columns[0], y, "✓ yes", 26, GREEN, "center")
        sheet.write(columns[1], y, "✓ yes" if may else "✗ no", 26, GREEN if may else RED, "center")
    return sheet
