"""The border for pixels: whatever comes in is read as upright sRGB, or refused in one line; nothing else comes out."""

import base64
import io
import itertools
import json
import random
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from functools import cache

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms, ImageFilter
from PIL.PngImagePlugin import PngInfo

from helpers.caption.claude.prompt import image_block
from helpers.caption.ledger import caption_images, pending
from helpers.config import CaptionConfig, DatasetConfig, ScrapeConfig
from helpers.core.decode import (
    BAD_PROFILE,
    FIRST_FRAME,
    NO_CMYK_PROFILE,
    ON_WHITE,
    TO_SRGB,
    ImageError,
    TooLarge,
    decode,
    read_picture_file,
    strip_metadata,
)
from helpers.core.records import Post, read_rows
from helpers.core.run import Run
from helpers.dataset.build import build
from helpers.dataset.dataset_card import card, card_words
from helpers.dataset.dataset_files import read_records
from helpers.dataset.join import table
from helpers.figures.pictures import open_rgb
from helpers.scrape.ingest import find, take
from tests.conftest import ROOT, lines, make_dataset
from tests.profiles import PRIMARIES, cmyk_profile, grey_profile, press, rgb_profile
from tests.test_gate import mutate

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of files that are damaged here
QUARTERS = [(200, 40, 40), (40, 160, 60), (60, 80, 200), (230, 220, 200)]
PLACES = [(8, 8), (55, 8), (8, 40), (55, 40)]
PHONE, WITH_ALPHA = ROOT / "tests/pictures/phone.heic", ROOT / "tests/pictures/alpha.heic"


def quarters():
    """A picture of four flat colours."""
    image = Image.new("RGB", (64, 48))
    for i, colour in enumerate(QUARTERS):
        image.paste(colour, (32 * (i % 2), 24 * (i // 2), 32 * (i % 2) + 32, 24 * (i // 2) + 24))
    return image


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def colours(image):
    return np.array([image.getpixel(place) for place in PLACES], int)


def speckled(mode="RGB", side=48, seed=0):
    shape = (side, side) if mode == "L" else (side, side, len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(pixels, mode) if mode == "CMYK" else Image.fromarray(pixels)


# formats


def tiff(pixels, photometric=2, bits=16, format=1, extra=()):
    """A TIFF of one strip, little-endian. pixels: bytes, with their (height, width, channels)"""
    data, (height, width, channels) = pixels
    tags = {
        256: (4, 1, width), 257: (4, 1, height), 259: (3, 1, 1), 262: (3, 1, photometric),
        277: (3, 1, channels), 278: (4, 1, height), 279: (4, 1, len(data)),
    } | dict(extra)  # fmt: skip
    start = 8 + 2 + 12 * (len(tags) + 3) + 4
    many = struct.pack(f"<{channels}H", *[bits] * channels)
    many += struct.pack(f"<{channels}H", *[format] * channels)
    tags[258] = (3, channels, start) if channels > 2 else (3, 1, bits)
    tags[339] = (3, channels, start + 2 * channels) if channels > 2 else (3, 1, format)
    tags[273] = (4, 1, start + len(many))
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"
    return head + many + data


def deep(image, scale=257):
    pixels = np.asarray(image).astype("<u2") * scale
    return pixels.tobytes(), (*pixels.shape, 1)[:3]


def psd(image, mode):
    """The flat picture of a PSD without layers, uncompressed."""
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(image.getbands()), *image.size[::-1], 8, mode)
    planes = b"".join(band.tobytes() for band in image.split())
    return head + bytes(12) + b"\0\0" + planes


@cache
def everything():
    """A file of each kind that is read, with the picture that it shows."""
    picture = quarters()
    grey = picture.convert("L")
    cmyk = picture.convert("CMYK")
    lab = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    black = Image.new("RGB", (64, 48), "black")
    return {
        "JPEG": (saved(picture, "JPEG", quality=95, subsampling=0), picture),
        "JPEG, progressive": (saved(picture, "JPEG", quality=95, progressive=True), picture),
        "JPEG, grey": (saved(grey, "JPEG"), grey),
        "JPEG, CMYK": (saved(cmyk, "JPEG", quality=95), cmyk),
        "MPO": (saved(picture, "MPO", quality=95, save_all=True, append_images=[black.copy()]), picture),
        "PNG": (saved(picture, "PNG"), picture),
        "PNG, 16-bit grey": (saved(Image.fromarray(np.asarray(grey).astype("<u2") * 257), "PNG"), grey),
        "PNG, palette": (saved(picture.convert("P"), "PNG"), picture.convert("P")),
        "PNG, one bit": (saved(picture.convert("1"), "PNG"), picture.convert("1")),
        "PNG, moving": (saved(picture, "PNG", save_all=True, append_images=[black.copy()]), picture),
        "WEBP": (saved(picture, "WEBP", quality=95), picture),
        "WEBP, lossless": (saved(picture, "WEBP", lossless=True), picture),
        "WEBP, moving": (saved(picture, "WEBP", lossless=True, save_all=True, append_images=[black.copy()]), picture),
        "AVIF": (saved(picture, "AVIF", quality=95), picture),
        "HEIC, alpha": (WITH_ALPHA.read_bytes(), _without_a_quarter(picture)),
        "GIF": (saved(picture, "GIF"), picture),
        "GIF, moving": (saved(picture, "GIF", save_all=True, append_images=[black.copy()]), picture),
        "TIFF": (saved(picture, "TIFF"), picture),
        "TIFF, LZW": (saved(picture, "TIFF", compression="tiff_lzw"), picture),
        "TIFF, JPEG": (saved(picture, "TIFF", compression="jpeg", quality=95), picture),
        "TIFF, pages": (saved(picture, "TIFF", save_all=True, append_images=[black.copy()]), picture),
        "TIFF, 16 bits": (tiff(deep(picture)), picture),
        "TIFF, 16-bit grey": (tiff(deep(grey), photometric=1), grey),
        "TIFF, CMYK": (saved(cmyk, "TIFF"), cmyk),
        "TIFF, 16-bit CMYK": (tiff(deep(cmyk), photometric=5), cmyk),
        "TIFF, LAB": (saved(lab, "TIFF"), picture),
        "PSD": (psd(picture, 3), picture),
        "PSD, CMYK": (psd(Image.eval(cmyk, lambda v: 255 - v), 4), cmyk),
        "PSD, grey": (psd(grey, 1), grey),
    }  # fmt: skip


def captioned(name, folder):
    """A run of a folder's pictures and their captions, as far as 02."""
    run = Run(name)
    config = ScrapeConfig(run=name, source="folder", folder=str(folder))
    list(take(config, run, find(config, run)))
    caption = CaptionConfig(run=name)
    list(caption_images(caption, run, pending(caption, run)))
    return run


def _without_a_quarter(picture):
    cut = picture.copy()
    cut.paste((255, 255, 255), (0, 0, 32, 24))
    return cut


@pytest.mark.parametrize("kind", everything())
def test_every_format_gives_its_first_picture(kind):
    content, shown = everything()[kind]
    picture = decode(content)
    assert picture.image.mode == "RGB" and picture.image.size == (64, 48) and not picture.image.info
    assert np.abs(colours(picture.image) - colours(shown.convert("RGB"))).max() <= 4
    assert (FIRST_FRAME in picture.notes) == (kind.endswith(("moving", "pages")))
    assert (NO_CMYK_PROFILE in picture.notes) == ("CMYK" in kind)


def test_every_format_walks_from_a_folder_into_the_dataset(workplace, tmp_path):
    folder, kinds = tmp_path / "kinds", everything()
    folder.mkdir()
    for i, (kind, (content, _)) in enumerate(kinds.items()):
        (folder / f"k{i:02d}.any").write_bytes(content)
        (folder / f"k{i:02d}.txt").write_text(kind)
    run = captioned("kinds", folder)
    assert not run.rejected.exists()
    suffixes = {path.suffix for path in run.images.iterdir()} - {".txt"}
    assert suffixes == {".jpg", ".png", ".webp", ".avif", ".heic", ".gif", ".tif", ".psd"}
    images = table(run).assign(split="train")  # copies of one another: they all go in
    assert dict(zip(images["caption"], images["file_name"], strict=True)).keys() == kinds.keys()
    build(DatasetConfig(run="kinds"), run, images, pd.DataFrame({"kind": []}))
    for record in read_records(run.dataset):
        original = run.image(record.image).read_bytes()
        assert original == kinds[record.text.removesuffix(DatasetConfig().suffix)][0]
        written = (run.split("train") / record.file_name).read_bytes()
        assert not metadata(written)
        assert levels_apart(decode(written).image, decode(original).image) == 0


def test_a_phones_picture_is_upright_and_in_srgb():
    picture = decode(PHONE.read_bytes())
    assert picture.image.size == (48, 64) and picture.notes == (TO_SRGB,)
    top_right = np.array(picture.image.getpixel((40, 8)), int)
    assert np.abs(top_right - p3_red()).max() <= 3


def p3_red():
    """Display P3 (200, 40, 40) in sRGB, by the formulas alone."""
    linear = (np.array(QUARTERS[0]) / 255) ** 2.2
    matrix = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])
    srgb = (matrix @ linear).clip(0, 1)
    srgb = np.where(srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb ** (1 / 2.4) - 0.055)
    return (srgb * 255).round()


def test_what_is_transparent_is_on_white_and_told():
    image = quarters()
    alpha = Image.new("L", image.size, 255)
    image.putalpha(alpha)
    opaque = decode(saved(image, "PNG"))
    assert opaque.notes == () and (colours(opaque.image) == QUARTERS).all()
    alpha.paste(0, (0, 0, 32, 24))
    alpha.paste(128, (32, 0, 64, 24))
    image.putalpha(alpha)
    picture = decode(saved(image, "PNG"))
    assert picture.notes == (ON_WHITE,)
    assert picture.image.getpixel((8, 8)) == (255, 255, 255)
    assert np.abs(np.array(picture.image.getpixel((55, 8))) - (147, 207, 157)).max() <= 1
    in_p3 = decode(saved(image, "PNG", icc_profile=rgb_profile(PRIMARIES["Display P3"], 2.2)))
    assert in_p3.notes == (TO_SRGB, ON_WHITE) and in_p3.image.getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is no JPEG"),
        (b"hello", "is no JPEG"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  ", "is no JPEG"),
        (b"%PDF-1.7\n", "is no JPEG"),
        (b"BM" + bytes(60), "is no JPEG"),
        (PHONE.read_bytes()[:900], "JPEG|decode"),
        (tiff(deep(quarters()), extra={254: (4, 1, 1)}.items()), "camera's raw file"),
        (tiff(deep(quarters()), extra={50706: (1, 4, 0x401)}.items()), "camera's raw file"),
        (tiff((bytes(4 * 64 * 48), (48, 64, 1)), 1, 32, 3), "32-bit values"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_line(content, reason):
    with pytest.raises(ImageError, match=reason) as refused:
        decode(content)
    assert "\n" not in str(refused.value) and len(str(refused.value)) > 8


# sizes


def test_a_film_of_6_gb_is_never_read(workplace, tmp_path):
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "a.png").write_bytes(saved(quarters(), "PNG"))
    for name, head in (
        ("film.mov", b""),
        ("film.jpg", b"\0\0\0\x14ftypqt  "),
        ("scan.tif", b"II*\0\x08\0\0\0"),
    ):
        with (folder / name).open("wb") as file:
            file.write(head)
            file.truncate(6 * 10**9)  # with a hole in it
    config, run = ScrapeConfig(run="p", source="folder", folder=str(folder)), Run("p")
    tracemalloc.start()
    reasons = {item.name: item.reason for item in take(config, run, find(config, run))}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "film.mov" not in reasons  # it lies beside pictures, and is counted
    assert "is no JPEG" in reasons["film.jpg"] and reasons["a.png"] == "" and peak < 50e6
    assert reasons["scan.tif"] == "is 6.0 GB, more than 80 megapixels can take"


def test_pixels_are_counted_before_they_are_decoded():
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", huge) + _chunk(b"IDAT", b"")
    with pytest.raises(TooLarge, match="60000 x 60000 px is more than 1000 megapixels"):
        decode(png)
    content = saved(Image.new("1", (2000, 1200)), "PNG")
    assert decode(content, 3).image.size == (2000, 1200)
    with pytest.raises(TooLarge, match="more than 2 megapixels"):
        decode(content, 2)


@pytest.mark.soak
def test_a_scan_of_195_megapixels_is_taken_where_300_are_allowed(tmp_path):
    path = tmp_path / "scan.png"
    Image.new("1", (15_000, 13_000), 1).save(path)
    assert decode(path, 300).image.size == (15_000, 13_000)
    with pytest.raises(TooLarge, match="more than 80 megapixels"):
        decode(path, 80)


def test_texts_in_a_png_do_not_count(tmp_path):
    words = PngInfo()
    words.add_text("workflow", "a word or two " * 400_000, zip=True)
    words.add_itxt("parameters", "日本 " * 600_000, zip=True)
    words.add_text("plain", "x" * 70_000_000)
    content = saved(quarters(), "PNG", pnginfo=words)
    picture = decode(content)
    assert (colours(picture.image) == QUARTERS).all() and picture.is_stored
    assert len(strip_metadata(content, "PNG")) < 2000


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# colour


def profiles():
    """Forty: (mode, profile)."""
    for name, gamma in itertools.product(PRIMARIES, (1.0, 1.8, 2.2, 2.4)):
        yield "RGB", rgb_profile(PRIMARIES[name], gamma)
    for gamma in (1.0, 1.8, 2.2, 2.6):
        yield "L", grey_profile(gamma)
    for share in (0.2, 0.6, 0.9):
        yield "CMYK", cmyk_profile(lambda inks, share=share: press(inks * share))
    yield "CMYK", cmyk_profile(press)


def littlecms(image, profile):
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, source, srgb, intent, "RGB", flags=flags)


def levels_apart(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int)).max()


def test_forty_profiles_give_the_colours_that_littlecms_gives():
    seen = list(profiles())
    for mode, profile in seen:
        image = speckled(mode)
        kinds = ("TIFF",) if mode == "CMYK" else ("PNG", "TIFF")
        for kind in kinds:
            picture = decode(saved(image, kind, icc_profile=profile))
            assert levels_apart(picture.image, littlecms(image, profile)) <= 2
            changed = levels_apart(image.convert("RGB"), picture.image) > 0
            assert (picture.notes == (TO_SRGB,)) == changed and BAD_PROFILE not in picture.notes
    assert len(seen) == 40


def test_a_red_of_a_wide_gamut_is_the_red_that_the_formulas_give():
    picture = decode(
        saved(quarters(), "PNG", icc_profile=rgb_profile(PRIMARIES["Display P3"], 2.2))
    )
    assert np.abs(np.array(picture.image.getpixel((8, 8))) - p3_red()).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_every_format_is_read_by_its_own_profile(kind):
    profile = rgb_profile(PRIMARIES["Adobe RGB"], 2.2)
    content = saved(quarters(), kind, quality=100, icc_profile=profile)
    plain = Image.open(io.BytesIO(content)).convert("RGB")
    assert levels_apart(decode(content).image, littlecms(plain, profile)) <= 2


def test_a_profile_of_srgb_leaves_the_pixels_as_they_are():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = decode(saved(quarters(), "JPEG", icc_profile=srgb))
    assert picture.notes == () and picture.is_stored


@pytest.mark.parametrize(
    ("image", "profile"),
    [
        (quarters(), b"no profile"),
        (quarters(), rgb_profile(PRIMARIES["Adobe RGB"], 2.2)[:200]),
        (quarters(), cmyk_profile(press)),
        (quarters(), grey_profile(2.2)),
        (quarters().convert("CMYK"), rgb_profile(PRIMARIES["Adobe RGB"], 2.2)),
    ],
)
def test_a_profile_that_does_not_fit_is_told_and_ignored(image, profile):
    picture = decode(saved(image, "TIFF", icc_profile=profile))
    assert BAD_PROFILE in picture.notes
    assert levels_apart(picture.image, image.convert("RGB")) == 0


def test_a_grey_picture_with_a_profile_of_colours_is_read_by_it():
    profile = rgb_profile(PRIMARIES["Display P3"], 1.0)
    grey = speckled("L")
    picture = decode(saved(grey, "PNG", icc_profile=profile))
    assert levels_apart(picture.image, littlecms(grey.convert("RGB"), profile)) <= 2


def test_grey_with_alpha_is_read_by_its_grey_profile():
    grey, profile = speckled("L"), grey_profile(1.0)
    with_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    picture = decode(saved(with_alpha, "PNG", icc_profile=profile))
    assert picture.notes == (TO_SRGB,)
    assert levels_apart(picture.image, littlecms(grey, profile)) <= 2


def test_claude_sees_the_colours_and_nothing_of_the_file(tmp_path):
    path = tmp_path / "a.png"
    profile = rgb_profile(PRIMARIES["Display P3"], 2.2)
    quarters().save(path, icc_profile=profile, exif=exif_of_a_camera())
    sent = base64.b64decode(image_block(path, 756)["source"]["data"])
    assert not metadata(sent)
    shown = Image.open(io.BytesIO(sent))
    assert np.abs(np.array(shown.getpixel((8, 8))) - p3_red()).max() <= 6
    assert not open_rgb(path).info


# EXIF


def exif_of_a_camera(orientation=1, extra=()):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "A maker", "A camera"
    place = exif.get_ifd(0x8825)
    place[1], place[2], place[3], place[4] = "N", (1.0, 2.0, 3.0), "E", (4.0, 5.0, 6.0)
    for tag, value in extra:
        exif[tag] = value
    return exif.tobytes()


def exif_variants():
    """EXIF as cameras, programs and accidents write it: each (orientation, content)."""
    signs = (b"II*\0", b"MM\0*")
    for sign, orientation, kind, count in itertools.product(signs, (6, 8), range(14), (1, 2, 7)):
        yield orientation, _exif(sign, orientation, (0x8825, 6, kind, count))  # of GPS
        yield orientation, _exif(sign, orientation, (0x8769, 0x9003, kind, count))  # of the camera
    for sign, orientation, tag in itertools.product(signs, range(1, 9), range(30)):
        yield orientation, _exif(sign, orientation, (0x8825, tag, 10, 1))
    whole = _exif(signs[0], 6, (0x8825, 6, 10, 1))
    for cut in range(40, len(whole)):
        yield None, whole[:cut]
    rng = random.Random(0)
    while True:
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(6, len(broken))] = rng.randrange(256)
        yield None, bytes(broken)


def _exif(sign, orientation, inner):
    """Orientation, and one tag of an inner folder: (folder, tag, type, count)."""
    order = "<" if sign[:1] == b"I" else ">"
    folder, tag, kind, count = inner
    pack = lambda layout, *values: struct.pack(order + layout, *values)  # noqa: E731
    head = sign + pack("I", 8) + pack("H", 2) + pack("HHIHH", 0x0112, 3, 1, orientation, 0)
    head += pack("HHII", folder, 4, 1, 38) + pack("I", 0)
    return (
        b"Exif\0\0"
        + head
        + pack("H", 1)
        + pack("HHII", tag, kind, count, 56)
        + pack("Iii", 0, -5, 7) * 4
    )


@pytest.mark.parametrize("count", [120, pytest.param(1135, marks=pytest.mark.soak)])
def test_no_exif_stops_a_picture(count):
    """Where the orientation is whole, it is kept to, whatever else the EXIF holds."""
    jpeg, bare = saved(quarters(), "JPEG", quality=95), quarters()
    step = 1135 // count
    variants = itertools.islice(exif_variants(), 0, 1135, step)
    seen = 0
    for orientation, exif in variants:
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        picture = decode(jpeg[:2] + segment + jpeg[2:])
        seen += 1
        if orientation is not None:
            expected = bare.transpose(TURNS[orientation]) if orientation > 1 else bare
            assert np.abs(np.asarray(picture.image, int) - np.asarray(expected, int)).mean() < 3
    assert seen >= count


TURNS = dict(
    zip(
        range(2, 9),
        [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ],
        strict=True,
    )
)


# mutations


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.soak)])
def test_no_mutated_file_stops_a_stage(workplace, tmp_path, count):
    """Each is refused with a reason, or is read by 01, 02 and 03 alike."""
    rng = random.Random(count)
    noise = Image.effect_noise((96, 64), 60).convert("RGB").filter(ImageFilter.GaussianBlur(1))
    profile = rgb_profile(PRIMARIES["Adobe RGB"], 2.2)
    files = [content for content, _ in everything().values()] + [PHONE.read_bytes()]
    files += [
        saved(noise, kind, icc_profile=profile) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    ]
    folder = tmp_path / "mutants"
    folder.mkdir()
    for i in range(count):
        (folder / f"m{i}.jpg").write_bytes(mutate(files[i % len(files)], files, rng))
        (folder / f"m{i}.txt").write_text(f"number {i}")
    run = make_dataset("m", folder)
    taken = {row.file_name for row in read_rows(run.posts, Post)}
    refused = [row for row in lines(run.rejected) if row["stage"] == "scrape"]
    assert (
        len(taken) + len(refused) == count and len(taken) > count / 8 and len(refused) > count / 8
    )
    assert all(row["reason"] and "\n" not in row["reason"] for row in refused)
    for name in taken:
        assert open_rgb(run.image(name)).mode == "RGB"
    assert not any(
        "decode" in row["reason"] for row in lines(run.rejected) if row["stage"] == "dataset"
    )
    for path in (*run.split_images("train"), *run.split_images("validation")):
        assert not metadata(path.read_bytes())


# what leaves


def metadata(content):
    """What a file of the dataset holds beside its pixels, by its chunks: a list of their names."""
    if content.startswith(b"\xff\xd8"):
        return _jpeg_metadata(content)
    if content.startswith(b"RIFF"):
        kinds = (
            [content[12:16]]
            if len(content) - 8 == struct.unpack("<I", content[4:8])[0]
            else ["rest"]
        )
        return [kind for kind in kinds if kind not in (b"VP8 ", b"VP8L")]
    assert content.startswith(b"\x89PNG")
    found, at = [], 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        found += [kind] if kind not in (b"IHDR", b"IDAT", b"IEND", b"PLTE") else []
        at += size + 12
        if kind == b"IEND" and at != len(content):
            found.append("rest")
    return found


def _jpeg_metadata(content):
    found, at = [], 2
    while content[at + 1] != 0xD9:
        assert content[at] == 0xFF
        kind, size = content[at + 1], struct.unpack(">H", content[at + 2 : at + 4])[0]
        is_jfif = content[at + 4 : at + 9] == b"JFIF\0" and size == 16  # without a thumbnail
        if (0xE0 <= kind <= 0xEF or kind == 0xFE) and not is_jfif:
            found.append(hex(kind))
        at += 2 + size
        while kind == 0xDA and not (
            content[at] == 0xFF and content[at + 1] not in (0, *range(0xD0, 0xD8))
        ):
            at += 1
    return found + (["rest"] if at + 2 != len(content) else [])


def full_of_words():
    """Pictures with all that a file can hold beside its pixels: name to content."""
    exif, turned = exif_of_a_camera(), exif_of_a_camera(6)
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><place>A place</place></x:xmpmeta>"
    words = PngInfo()
    words.add_text("Comment", "A place")
    words.add_itxt("XML:com.adobe.xmp", xmp.decode())
    p3 = rgb_profile(PRIMARIES["Display P3"], 2.2)
    images = [
        speckled(side=80, seed=i).filter(ImageFilter.GaussianBlur(2 + i % 3)) for i in range(12)
    ]
    jpeg = saved(images[0], "JPEG", exif=exif, xmp=xmp, comment="A place", dpi=(72, 72))
    iptc = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x5a\0\x07A place"
    jpeg = jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + jpeg[2:]
    film = saved(images[1], "JPEG", exif=exif) + b"\0\0\0\x18ftypmp42 A place"  # a motion photo
    return {
        "a.jpg": jpeg,
        "b.jpg": film,
        "c.jpg": saved(images[2], "JPEG", exif=turned),
        "d.jpg": saved(images[3], "JPEG", exif=exif, icc_profile=p3),
        "e.jpg": saved(images[4], "MPO", exif=exif, save_all=True, append_images=[images[5]]),
        "f.png": saved(images[5], "PNG", exif=exif, pnginfo=words, dpi=(72, 72)) + b"A place",
        "g.png": saved(images[6].convert("RGBA"), "PNG", exif=exif, pnginfo=words),
        "h.webp": saved(images[7], "WEBP", exif=exif, xmp=xmp),
        "i.webp": saved(images[8], "WEBP", lossless=True, exif=exif, icc_profile=p3),
        "j.avif": saved(images[9], "AVIF", exif=exif, xmp=xmp),
        "k.tif": saved(images[10], "TIFF", tiffinfo={270: "A place", 271: "A maker"}),
        "l.gif": saved(images[11], "GIF", comment=b"A place"),
        "m.heic": PHONE.read_bytes(),
        "n.jpg": saved(
            images[1].convert("CMYK"), "JPEG", icc_profile=cmyk_profile(press), exif=exif
        ),
    }


@pytest.fixture
def told(workplace, tmp_path):
    folder = tmp_path / "told"
    folder.mkdir()
    for name, content in full_of_words().items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text(f"picture {name[0]}")
    return make_dataset("told", folder)


def test_a_dataset_holds_pixels_and_nothing_else(told):
    files = [*told.split_images("train"), *told.split_images("validation")]
    assert len(files) >= 12
    for path in files:
        content = path.read_bytes()
        assert not metadata(content), path
        for word in (b"A place", b"A maker", b"Exif", b"ICC", b"http", b"JFIF"):
            assert word not in content, (path, word)
        source = next(
            p for p in told.images.iterdir() if p.stem == path.stem and p.suffix != ".txt"
        )
        assert open_rgb(path).tobytes() == open_rgb(source).tobytes()
    assert {path.suffix for path in files} == {
        ".jpg",
        ".png",
        ".webp",
    }  # plain ones keep their data
    assert {p.read_bytes() for p in told.images.iterdir() if p.suffix != ".txt"} == set(
        full_of_words().values()
    )


def test_the_card_says_what_became_of_the_pixels(told):
    words = card_words(told.dataset)
    assert "upright, in sRGB, without EXIF, positions, cameras" in words
    assert f"4 {TO_SRGB}" in words or f"3 {TO_SRGB}" in words
    about = json.loads((told.dataset / "about.json").read_text())
    del about["changed"]  # as an older version left it
    (told.dataset / "about.json").write_text(json.dumps(about))
    assert "as they were published" in card(told.dataset, read_records(told.dataset))


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not there")
def test_exiftool_finds_nothing_in_a_dataset(told):
    folders = [told.split("train"), told.split("validation")]
    command = ["exiftool", "-j", "-G", "-r", "-ee", "-ext", "jpg", "-ext", "png", "-ext", "webp"]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    groups = {name.partition(":")[0] for row in found for name in row if ":" in name}
    assert len(found) >= 12 and groups <= {"File", "PNG", "RIFF", "ExifTool", "Composite"}
    plain = {
        "ImageWidth",
        "ImageHeight",
        "BitDepth",
        "ColorType",
        "Compression",
        "Filter",
        "Interlace",
    }
    inner = {
        name.partition(":")[2]
        for row in found
        for name in row
        if name.startswith(("PNG:", "RIFF:"))
    }
    assert inner <= plain | {
        "Palette",
        "VP8Version",
        "HorizontalScale",
        "VerticalScale",
        "AlphaIsUsed",
    }


def test_reading_a_picture_file_gives_its_very_bytes(tmp_path):
    path = tmp_path / "a.heic"
    path.write_bytes(PHONE.read_bytes())
    assert read_picture_file(path) == PHONE.read_bytes()
