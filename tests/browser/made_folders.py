"""Folders as artists have them: from a phone, from a scanner, from kohya's trainer. All pictures are made here.

Each picture comes with what it shows and how far its colours may be from that, so that what a run took of it can be
compared. Wants `heif-enc` (Debian's libheif-examples) for the phone's own format.
"""

import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFilter, ImageFont

from helpers.demo.paint import paint_flat, paint_watercolour
from helpers.demo.scenes import DEMO_SCENES_FROM, random_scene
from tests.profiles import PRIMARIES, cmyk_profile, press, rgb_profile
from tests.test_decode import deep, psd, tiff

SRGB = ImageCms.createProfile("sRGB")
ORIENTATION, GPS = 0x0112, 0x8825
QUARTER_TURNS = {1: 0, 3: 2, 6: 3}  # against the clock
STORED = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}  # by orientation


@dataclass(frozen=True)
class Made:
    """A file that a folder got.

    picture    what it shows, upright and in sRGB; None if it is no art
    tolerance  levels of 255 by which the mean pixel of what was taken may differ
    caption    what its text says or, where it has none, what a person types; empty where neither does
    """

    path: Path
    picture: Image.Image | None = None
    tolerance: float = 6.0
    caption: str = ""


class Art:
    """Pictures one after another: the demo's painter's, or those of a folder."""

    def __init__(self, first: int, folder: Path | None = None) -> None:
        self.seed = DEMO_SCENES_FROM + first
        self.files = sorted(folder.iterdir())[first:] if folder else []

    def next(self, side_px: int = 640) -> tuple[Image.Image, str]:
        """A picture, and what it shows in words."""
        self.seed += 1
        if self.files:
            path = self.files.pop(0)
            picture = Image.open(path).convert("RGBA")
            sheet = Image.new("RGB", picture.size, (244, 238, 226))
            sheet.paste(picture, mask=picture.getchannel("A"))
            return sheet, " ".join(path.stem.split("-")[1:])
        scene = random_scene(self.seed)
        painted = paint_watercolour(scene, side_px)
        return painted.crop((0, 0, side_px, side_px * 4 // 5)), scene.caption


def phone(root: Path, art: Art) -> Iterator[Made]:
    """Months of a phone's camera roll, a part of it by way of Google Takeout."""
    may, june = root / "2026-05 Mai", root / "2026-06 Juin 🌻"
    for folder in (may, june):
        folder.mkdir(parents=True)
    for number, orientation in ((2301, 6), (2302, 1)):
        picture, words = art.next()
        path = may / f"IMG_{number}.HEIC"
        path.write_bytes(_heic(picture, orientation))
        yield Made(path, picture, 8.0, words)
        path.with_suffix(".MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(5000))  # Live Photo
        path.with_suffix(".AAE").write_text("<plist/>", encoding="utf-8")
    for number, orientation in ((2303, 3), (2304, 6)):
        picture, words = art.next()
        yield Made(
            _camera_jpeg(may / f"IMG_{number}.JPG", picture, orientation), picture, caption=words
        )
    picture, words = art.next()
    for shot in range(4):  # a burst: one drawing, a hand that moves
        moved = picture.transform(
            picture.size, Image.Transform.AFFINE, (1, 0, 2.0 * shot, 0, 1, 1.5 * shot)
        )
        moved = moved.point(lambda v, shot=shot: min(255, v + 3 * shot))
        path = june / f"20260612_1015{shot:02}_Burst{shot + 1:02}.jpg"
        yield Made(_camera_jpeg(path, moved, 1), moved, caption=words)
    path = _saved(june / "Screenshot_20260614-190211.png", _screenshot(art))
    yield Made(path, caption="a post of mine on a phone")
    sketch = _sketch((900, 1200), 3)
    path = june / "Notes scan.png"  # lines on nothing, which Notes shows on white
    clear = sketch.convert("RGBA")
    clear.putalpha(Image.eval(sketch.convert("L"), lambda v: 255 - v))
    yield Made(_saved(path, clear), sketch, 12.0, "a tangle of crooked lines")
    picture, words = art.next()
    whole = _camera_jpeg(june / "IMG_2310.JPG", picture, 1)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    yield Made(whole)
    picture, words = art.next()
    name = normalize("NFD", "Été à la mer 🐚.jpg")
    yield Made(_camera_jpeg(june / name, picture, 1), picture, caption=words)
    for number in (1, 2):
        picture, words = art.next()
        path = _camera_jpeg(june / f"PXL_2026062{number}_080000.jpg", picture, 1)
        told = {"title": path.name, "description": "", "url": "https://photos.google.com/photo/x"}
        aside = path.with_name(f"{path.name}.supplemental-metadata.json")
        aside.write_text(json.dumps(told), encoding="utf-8")
        yield Made(path, picture, caption=words)
    (root / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def scanner(root: Path, art: Art) -> Iterator[Made]:
    """What a scanner's program and an image editor leave of two sketchbooks."""
    root.mkdir(parents=True)
    picture, words = art.next()
    path = root / "Scan 0001.tif"
    path.write_bytes(tiff(deep(picture)))
    yield Made(path, picture, 3.0, words)
    profile = cmyk_profile(press)
    for name in ("Scan 0002.jpg", "Scan 0003.tif"):
        picture, words = art.next()
        options = {"quality": 95} if name.endswith("jpg") else {"compression": "tiff_lzw"}
        path = _saved(root / name, picture.convert("CMYK"), icc_profile=profile, **options)
        yield Made(
            path, picture, 60.0, words
        )  # a press is not a screen: only whether it is this picture
    picture, words = art.next()
    yield Made(
        _saved(root / "Scan 0004 print.tif", picture.convert("CMYK")), picture, caption=words
    )
    (first, words), *others = [art.next() for _ in range(3)]
    pages = [first, *(picture for picture, _ in others)]
    path = _saved(root / "Sketchbook A.tif", pages[0], save_all=True, append_images=pages[1:])
    yield Made(path, first, 3.0, words)
    picture, words = art.next()
    lab = ImageCms.profileToProfile(picture, SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    yield Made(_saved(root / "Scan 0005 Lab.tif", lab), picture, caption=words)
    picture, words = art.next()
    (root / "Poster.psd").write_bytes(psd(picture, 3))
    yield Made(root / "Poster.psd", picture, 3.0, words)
    picture, words = art.next()
    size = tuple(side * 6200 // max(picture.size) for side in picture.size)  # of A4, at 600 dpi
    big = picture.resize(size, Image.Resampling.BICUBIC)
    path = _saved(root / "Scan 0006 600dpi.jpg", big, quality=88, dpi=(600, 600))
    yield Made(path, picture, caption=words)
    huge = Image.new("L", (14032, 9921), 240)  # A4 at 1200 dpi
    yield Made(_saved(root / "Scan 0007 1200dpi.png", huge, dpi=(1200, 1200)))
    picture, words = art.next()
    grey = picture.convert("L")
    yield Made(_saved(root / "Scan 0008 grey.png", grey), grey, caption=words)
    for number in (9, 10):
        sketch = _dusty(_sketch((1240, 1754), number), number)
        path = _saved(root / f"Scan {number:04} pencil.jpg", sketch, quality=90, dpi=(150, 150))
        yield Made(path, sketch, caption=f"crooked lines on sheet {number}")
    blank = _dusty(Image.new("RGB", (1240, 1754), (250, 249, 246)), 11)
    yield Made(_saved(root / "Scan 0011.jpg", blank, quality=90), blank, caption="a sheet of paper")
    path = _saved(root / "Scan 0012 letter.png", _text_page())
    yield Made(path, caption="a letter to an aunt")
    raw = io.BytesIO()
    pages[1].save(raw, "PDF")
    (root / "Portfolio.pdf").write_bytes(raw.getvalue())
    (root / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(2000))


def kohya(root: Path, art: Art) -> Iterator[Made]:
    """A training of kohya's: images with captions in several forms, masks, regularisation, samples, caches."""
    images, masks = root / "img/10_mira style", root / "mask/10_mira style"
    for folder in (images, masks, root / "reg/1_style", root / "model/sample", root / "log"):
        folder.mkdir(parents=True)

    def put(name: str, text: bytes | str, caption: str = "", ending: str = ".txt") -> Made:
        picture = pictures.pop(0)
        path = _saved(images / name, picture)
        content = text.encode() if isinstance(text, str) else text
        path.with_name(Path(name).stem + ending).write_bytes(content)
        _saved(masks / name, picture.convert("L").point(lambda v: 255 * (v < 200)))
        return Made(path, picture, 3.0, caption or str(text))

    pairs = [art.next() for _ in range(13)]
    pictures, words = [picture for picture, _ in pairs], [caption for _, caption in pairs]
    yield put("001.png", words[0])
    yield put("002.png", words[1] + "\n")
    yield put("003.png", b"\xef\xbb\xbf" + words[2].encode(), words[2])
    yield put("004.png", (words[3] + "\r\n").encode("utf-16"), words[3])
    yield put("005.png", words[4], ending=".caption")
    yield put("006.png", words[5], ending=".caption")
    yield put("007.png", f"{words[6]}\nthe same, seen again\n", words[6])
    made = put(normalize("NFD", "forêt.png"), words[7])  # named on a Mac, captioned elsewhere
    made.path.with_suffix(".txt").rename(images / normalize("NFC", "forêt.txt"))
    yield made
    yield put("009.png", f"{words[8]} in a mira watercolor style", words[8])
    yield put("010.png", f"mira style, {words[9]}, solo, looking at viewer")
    yield put("011.png", "un éléphant à la fenêtre".encode("cp1252"), "un éléphant à la fenêtre")
    yield put("012.png", "", " ")
    made = put("013.png", words[12])
    made.path.with_suffix(".txt").unlink()  # a list has its caption
    yield made
    lines = [{"file_name": "013.png", "text": words[12]}, {"file_name": "gone.png", "text": "x"}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (images / "metadata.jsonl").write_text(text, encoding="utf-8")
    for number in range(3):
        flat = paint_flat(random_scene(art.seed + 50 + number), 256)
        yield Made(_saved(root / f"reg/1_style/{number}.png", flat))
        drawn = paint_flat(random_scene(art.seed + 60 + number), 256)
        name = f"mira_e00000{number}_00_20260{number + 1}01120000_42.png"
        yield Made(_saved(root / "model/sample" / name, drawn))
    np.savez(images / "001_0512x0640_sd.npz", np.zeros((4, 64, 80), np.float16))
    (root / "model/mira.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    (root / "config.toml").write_text("[general]\n", encoding="utf-8")
    (root / "model/sample_prompts.txt").write_text("a cat --w 512\n", encoding="utf-8")
    (root / "log/events.out.tfevents.1767225600.pc").write_bytes(bytes(500))


def _saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def _camera_jpeg(path: Path, picture: Image.Image, orientation: int) -> Path:
    """A JPEG whose pixels lie as the camera was held, with a position and a day."""
    return _saved(path, _held(picture, orientation), quality=92, exif=_exif(orientation))


def _held(picture: Image.Image, orientation: int) -> Image.Image:
    turn = STORED[orientation]
    return picture if turn is None else picture.transpose(turn)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x0110], exif[0x0132] = "a phone", datetime(2026, 6, 12, 10, 15).strftime("%Y:%m:%d %X")
    exif.get_ifd(GPS).update({1: "N", 2: (48.0, 51.0, 24.0), 3: "E", 4: (2.0, 21.0, 3.0)})
    return exif


def _heic(picture: Image.Image, orientation: int) -> bytes:
    """An iPhone's: HEVC in Display P3, with a position; turned as the phone was held."""
    profile = rgb_profile(PRIMARIES["Display P3"], 2.2)
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    wide = ImageCms.profileToProfile(_held(picture, orientation), SRGB, opened, outputMode="RGB")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "a.png"), Path(folder, "a.heic")
        wide.save(source, exif=_exif(orientation), icc_profile=profile)
        subprocess.run(
            ["heif-enc", "-q", "92", source, "-o", target], check=True, capture_output=True
        )
        return _turned(target.read_bytes(), QUARTER_TURNS[orientation])


def _turned(content: bytes, quarters: int) -> bytes:
    """A HEIC with the property `irot` (ISO 23008-12, 6.5.10), by which alone it is turned, as a phone writes it."""
    if not quarters:
        return content
    at = {name: content.index(name) - 4 for name in (b"meta", b"iprp", b"ipco", b"ipma", b"iloc")}
    size = {name: int.from_bytes(content[i : i + 4]) for name, i in at.items()}
    properties = content[at[b"ipco"] + 8 : at[b"ipco"] + size[b"ipco"]]
    number, i = 1, 0
    while i < len(properties):
        number, i = number + 1, i + int.from_bytes(properties[i : i + 4])
    out = bytearray(content)
    first = at[b"ipma"] + 16  # item: two bytes of its number, and how many properties follow
    grown = {b"meta": 10, b"iprp": 10, b"ipco": 9, b"ipma": 1}
    for name, more in grown.items():
        out[at[name] : at[name] + 4] = (size[name] + more).to_bytes(4)
    for item in range(int.from_bytes(content[at[b"iloc"] + 14 : at[b"iloc"] + 16])):
        place = at[b"iloc"] + 26 + 18 * item  # of its first byte, which moves as well
        out[place : place + 4] = (int.from_bytes(out[place : place + 4]) + 10).to_bytes(4)
    end = first + 3 + content[first + 2]
    out[first + 2] += 1
    out[end:end] = bytes([0x80 | number])
    end = at[b"ipco"] + size[b"ipco"]
    out[end:end] = b"\0\0\0\x09irot" + bytes([quarters])
    return bytes(out)


def _sketch(size: tuple[int, int], seed: int) -> Image.Image:
    """A pencil drawing on white: a few crooked lines."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for _ in range(14):
        walk = np.cumsum(rng.normal(0, size[0] / 24, (40, 2)), 0) + np.array(size) / 2
        draw.line(
            [tuple(p) for p in walk], fill=(70, 70, 74), width=max(2, size[0] // 240), joint="curve"
        )
    return sheet.filter(ImageFilter.GaussianBlur(0.8))


def _dusty(sheet: Image.Image, seed: int) -> Image.Image:
    """The same with specks, and the lid's shadow along two edges, as a scanner sees a sheet."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(sheet, float) * 0.985 + rng.normal(0, 1.2, (*sheet.size[::-1], 1))
    pixels[:14] -= 60
    pixels[:, -10:] -= 40
    dusty = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(dusty)
    for x, y in rng.integers(0, sheet.size, (60, 2)):
        draw.ellipse((x, y, x + 2, y + 2), fill=(150, 148, 140))
    return dusty


WORDS = """dear aunt thank you for the brushes and the paper which came on Monday they are just what
was wanted here the garden is late this year but the apple tree stands in bloom"""


def _text_page() -> Image.Image:
    sheet = Image.new("RGB", (900, 1200), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=26)
    rng = np.random.default_rng(4)
    for line in range(26):
        words = " ".join(rng.permutation(WORDS.split())[:10])
        draw.text((60, 60 + 42 * line), words, (30, 30, 30), font)
    return sheet


def _screenshot(art: Art) -> Image.Image:
    """A phone's screen: a bar, a picture in a post, rows of text; with an alpha that is opaque."""
    page = _text_page().resize((720, 960)).crop((0, 0, 720, 700))
    screen = Image.new("RGBA", (720, 1480), (255, 255, 255, 255))
    screen.paste((20, 20, 24, 255), (0, 0, 720, 60))
    screen.paste(art.next(720)[0].resize((720, 576)), (0, 90))
    screen.paste(page, (0, 720))
    return screen
