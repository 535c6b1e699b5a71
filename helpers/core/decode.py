"""Decode an untrusted image file to upright sRGB pixels, or raise ImageError. No other module opens such files."""

import io
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pi_heif
from PIL import Image, ImageCms, PngImagePlugin

SUFFIXES = {  # of stored files, by Pillow's name of the format; an MPO is a JPEG followed by more pictures
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "HEIF": "heic",
    "AVIF": "avif",
    "TIFF": "tif",
    "PSD": "psd",
    "GIF": "gif",
}
FORMATS = tuple(name for name in SUFFIXES if name != "MPO")  # which opens as a JPEG
NO_PICTURE = "is no JPEG, PNG, WEBP, HEIC, AVIF, TIFF, PSD or GIF image"
MAX_MPX = 1000  # the upper bound of ScrapeConfig.max_image_mpx
BYTES_A_PIXEL = 16  # four channels of 32 bits: no file of one picture needs more
ORIENTATION, DNG_VERSION, SUBFILE_TYPE = 0x0112, 0xC612, 0x00FE  # tags of EXIF and TIFF
UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MANY_FRAMES = ("PNG", "WEBP", "HEIF", "AVIF", "TIFF", "GIF")  # a PSD has layers, an MPO thumbnails
WHITE = "white"
NEARLY_SRGB = 1  # levels of 255 by which a profile may differ from sRGB without a conversion

# notes on a picture
TO_SRGB = "brought to sRGB by its own colour profile"
BAD_PROFILE = "its colour profile does not fit its pixels or is damaged, and was ignored"
NO_CMYK_PROFILE = "CMYK without a colour profile, so its colours are a guess"
ON_WHITE = "transparent parts put on white"
FIRST_FRAME = "only the first of several pages or frames"

pi_heif.register_heif_opener()
Image.MAX_IMAGE_PIXELS = None  # pixels are counted here, with a limit that a user sets
# bytes; also the limit for colour profiles, and printers' profiles are large
PngImagePlugin.MAX_TEXT_CHUNK = 2**24
warnings.filterwarnings("ignore", module="PIL")  # an ImageError says what is wrong with a file


class ImageError(OSError):
    """The error for an image file that cannot be used. The message is one line with the reason, but no file name."""


class TooLarge(ImageError):
    """The error for an image file whose bytes or pixels exceed a limit. The user can change this limit."""


@dataclass(frozen=True)
class Picture:
    """A decoded image: its pixels, the file's format, and notes on conversions."""

    image: Image.Image  # RGB, upright, sRGB, on a ground; without metadata
    format: str  # Pillow's name of the file's format
    notes: tuple[str, ...]  # the conversions that a person should know, of the sentences above
    is_stored: bool  # the file has these pixels: none was rotated, converted or put on white


def begins_as_picture(path: Path) -> bool:
    """Return True if a file's first bytes are those of an image format that can be decoded."""
    with path.open("rb") as file:
        head = file.read(32)
    Image.init()
    accepts = (Image.OPEN[name][1] for name in FORMATS)
    return any(accept is None or accept(head) for accept in accepts)


def read_picture_file(path: Path, max_mpx: int = MAX_MPX) -> bytes:
    """Read an image file's bytes. A file that is no image or too large raises ImageError before it is fully read."""
    if not begins_as_picture(path):
        raise ImageError(NO_PICTURE)
    size = path.stat().st_size
    if size > BYTES_A_PIXEL * max_mpx * 10**6:
        raise TooLarge(f"is {size / 1e9:.1f} GB, more than {max_mpx} megapixels can take")
    return path.read_bytes()


def decode(file: Path | bytes, max_mpx: int = MAX_MPX, ground: str = WHITE) -> Picture:
    """Decode an image file (path or bytes) completely. This finds damage that Pillow's `verify()` would miss.

    `ground` is the colour that transparent parts are put on.
    Raises ImageError if it is of another format, is damaged, or has more than `max_mpx` megapixels.
    """
    content = file if isinstance(file, bytes) else read_picture_file(file, max_mpx)
    try:
        return _decode(content, max_mpx, ground)
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError(NO_PICTURE) from None
    except Exception as error:  # decoders raise all kinds of exceptions for damaged files
        words = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"does not decode: {words}") from None


def _decode(content: bytes, max_mpx: int, ground: str) -> Picture:
    content = strip_png_text(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > max_mpx * 1e6:
            raise TooLarge(f"{image.width} x {image.height} px is more than {max_mpx} megapixels")
        tags = image.tag_v2 if image.format == "TIFF" else {}
        is_preview = tags.get(SUBFILE_TYPE, 0) == 1  # as the first page
        if DNG_VERSION in tags or is_preview or tags and content[8:10] == b"CR":  # Canon's mark
            raise ImageError("is a camera's raw file: export it as JPEG or TIFF")
        turn = UPRIGHT.get(_load_and_orientation(image))
        format, is_first = image.format, image.format in MANY_FRAMES and _has_more_frames(content)
        rgb, alpha, notes = to_srgb(image, image.info.get("icc_profile"))
        is_stored = image.mode == "RGB" and not (notes or alpha or turn or is_first)
    if alpha is not None:
        behind = Image.new("RGB", rgb.size, ground)
        behind.paste(rgb, mask=alpha)
        rgb = behind
        notes += (ON_WHITE,) if ground == WHITE and alpha.getextrema()[0] < 255 else ()
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info.clear()
    return Picture(rgb, format, notes + ((FIRST_FRAME,) if is_first else ()), is_stored)


def _has_more_frames(content: bytes) -> bool:
    with suppress(Exception), Image.open(io.BytesIO(content), formats=MANY_FRAMES) as image:
        return getattr(image, "n_frames", 1) > 1
    return False  # damage after the first frame is ignored


def _load_and_orientation(image: Image.Image) -> int:
    is_tiff = image.format == "TIFF"  # Pillow would rotate it, and rewrite the EXIF for that
    orientation = image.tag_v2.pop(ORIENTATION, 1) if is_tiff else 1
    image.load()
    with suppress(Exception):  # of a damaged EXIF around a whole picture
        orientation = orientation if is_tiff else image.getexif().get(ORIENTATION, 1)
    return orientation if isinstance(orientation, int) else 1


def to_srgb(
    image: Image.Image, profile: bytes | None
) -> tuple[Image.Image, Image.Image | None, tuple[str, ...]]:
    """Convert an image to sRGB, as (RGB image, alpha channel or None, notes). Raises ImageError for 32-bit values."""
    if image.mode in ("I", "F"):
        raise ImageError(
            "holds 32-bit values, which have no fixed white: save it with 8 or 16 bits"
        )
    alpha = None
    if image.has_transparency_data and not image.mode.startswith("I;16"):
        bare = "L" if image.mode in ("L", "LA", "La") else "RGB"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(bare)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, lab, srgb, INTENT, "RGB", flags=FLAGS), alpha, ()
    if image.mode.startswith("I;16"):  # Pillow's convert() would clip 16-bit greyscale to white
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    note = NO_CMYK_PROFILE if image.mode == "CMYK" else ""
    if profile:
        lcms, mode, is_identity = _transform(profile, image.mode) or (None, "", False)
        if lcms and not is_identity:
            return ImageCms.applyTransform(image.convert(mode), lcms), alpha, (TO_SRGB,)
        note = "" if is_identity else BAD_PROFILE
    return image.convert("RGB"), alpha, (note,) if note else ()


MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # by the colour space of a profile
INTENT, FLAGS = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform, str, bool] | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        wanted = MODES[opened.profile.xcolor_space.strip()]
        if (mode == "CMYK") != (wanted == "CMYK") or wanted == "L" and mode not in ("L", "1"):
            return None
        srgb = ImageCms.createProfile("sRGB")
        lcms = ImageCms.buildTransform(opened, srgb, wanted, "RGB", INTENT, FLAGS)
        return lcms, wanted, wanted != "CMYK" and _is_identity(lcms, wanted)
    except Exception:  # littleCMS raises several kinds for damaged profiles
        return None


def _is_identity(lcms: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)
    colours = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before = np.asarray(colours.convert("RGB"), int)
    after = np.asarray(ImageCms.applyTransform(colours, lcms), int)
    return bool(np.abs(after - before).max() <= NEARLY_SRGB)


# files without their metadata

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
XMP = b"XML:com.adobe.xmp\0"  # may contain the orientation


def strip_png_text(content: bytes) -> bytes:
    """Remove a PNG's text chunks except XMP, since Pillow refuses large text chunks. Other formats stay unchanged."""
    if not content.startswith(PNG_SIGNATURE) or not any(kind in content for kind in PNG_TEXTS):
        return content
    chunks = png_chunks(content)
    kept = (c for c in chunks if c[4:8] not in PNG_TEXTS or c[8:].startswith(XMP))
    return PNG_SIGNATURE + b"".join(kept)


def png_chunks(content: bytes) -> list[bytes]:
    """Split a PNG into chunks, each including its length, kind and checksum. A damaged end becomes the last chunk."""
    chunks, at = [], len(PNG_SIGNATURE)
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        chunks.append(content[at:end])
        at = end
    return chunks


def strip_metadata(content: bytes, format: str) -> bytes | None:
    """Remove all metadata from a JPEG, PNG or WEBP without recompressing it. If that is impossible, return None."""
    if format in ("JPEG", "MPO"):
        return _jpeg_pixels(content)
    if format == "PNG":
        needed = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        return PNG_SIGNATURE + b"".join(c for c in png_chunks(content) if c[4:8] in needed)
    return _webp_pixels(content) if format == "WEBP" else None


JPEG_SEGMENT = re.compile(rb"\xff+([\xc0-\xcf\xda-\xfe])(..)", re.DOTALL)
# neither a stuffed byte nor a restart marker
JPEG_SCAN_END = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
JPEG_NEEDED = {*range(0xC0, 0xD0), *range(0xDA, 0xDE)}  # frames, tables, scans (T.81, table B.1)
SCAN = 0xDA


def _jpeg_pixels(content: bytes) -> bytes | None:
    parts, at = [content[:2]], 2
    while segment := JPEG_SEGMENT.match(content, at):
        kind = segment[1][0]
        end = segment.end() - 2 + int.from_bytes(segment[2])
        if kind == SCAN:
            after = JPEG_SCAN_END.search(content, end)
            if not after:
                return None  # the pixel data is cut off
            end = after.start()
        if kind in JPEG_NEEDED:
            parts += [b"\xff", content[segment.start(1) : end]]
        at = end
    # without the pictures after the first
    return b"".join(parts) + b"\xff\xd9"


def _webp_pixels(content: bytes) -> bytes | None:
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        chunk = content[at : at + 8 + size + size % 2]
        if chunk[:4] in (b"VP8 ", b"VP8L"):
            # everything but the compressed pixels is left out
            return b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk
        at += len(chunk)
    return None
