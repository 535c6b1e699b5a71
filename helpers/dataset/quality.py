"""Measure an image's quality as training data: sharpness, brightness, text and colours."""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import laplace
from scipy.spatial.distance import cdist

SIDE_PX = 256  # images are downscaled to this before most measurements
TEXT_SIDE_PX = 384
TEXT_SHORT_SIDE_PX = 256  # minimum: in a phone's screenshot of 177 x 384 px letters are dots
STROKE_STEP = 32  # a step between neighbouring pixels, of 255, that is the edge of a stroke
MIN_STROKES = 12  # edges along a row of text
MAX_LINE_HEIGHT = 0.12  # of the image's height
EDGES_OF_TEXT = (3.3, 9.5)  # per line height, along a line
MAX_REPETITION = 0.38  # as an autocorrelation; of 100 cards in 14 fonts half have under 0.22
MIN_FOR_OUTLIERS = 20  # images; in smaller sets none is an outlier
NEIGHBOURS = 5
BLOCK = 256  # images compared with all others at once, to limit memory


@dataclass(frozen=True)
class Quality:
    """The quality measures of an image."""

    sharpness: float  # variance of the Laplacian (Pech-Pacheco et al. 2000) at SIDE_PX
    detail: float  # the same at full size, times the number of pixels, for comparing copies
    brightness: float  # mean grey, 0 to 255
    text_share: float  # of the height that lines of text cover, 0 to 1
    palette: np.ndarray  # (72,) square roots of histograms: colours, steps between pixels


def measure(image: Image.Image) -> Quality:
    """Return the quality measures of an RGB image."""
    grey = image.convert("L")
    small = _downscale(grey, SIDE_PX)
    return Quality(
        sharpness=_laplacian_variance(small),
        detail=_laplacian_variance(grey) * image.width * image.height,
        brightness=float(np.asarray(small, np.float32).mean()),
        text_share=text_share(grey),
        palette=_palette(image, grey),
    )


def _downscale(image: Image.Image, side_px: int) -> Image.Image:
    factor = min(1.0, side_px / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _laplacian_variance(grey: Image.Image) -> float:
    if min(grey.size) < 3:
        return 0.0
    return float(laplace(np.asarray(grey, np.float32))[1:-1, 1:-1].var())


def text_share(grey: Image.Image) -> float:
    """Return the share (0 to 1) of an image's height that lines of text cover.

    A line is a low band of rows with many stroke edges, between rows with almost none. Bands that repeat (dots, bricks)
    or differ in density from letters (hatching) are patterns. Tall or slanted text, or text on a busy background, is
    not found.
    """
    side_px = max(TEXT_SIDE_PX, round(TEXT_SHORT_SIDE_PX * max(grey.size) / min(grey.size)))
    pixels = np.asarray(_downscale(grey, side_px), np.int16)
    edges = np.abs(np.diff(pixels, axis=1)) > STROKE_STEP
    strokes = edges.sum(1)
    is_inked = np.concatenate([[False], strokes > 1, [False]])
    turns = np.flatnonzero(np.diff(is_inked.astype(np.int8)))
    height = len(pixels)
    lines = [
        edges[top:below]
        for top, below in zip(turns[::2], turns[1::2], strict=True)
        if 3 <= below - top <= MAX_LINE_HEIGHT * height
        and np.median(strokes[top:below]) >= MIN_STROKES
    ]
    if not lines:
        return 0.0
    density, repetition = np.median([_measure_line(line) for line in lines], axis=0)
    if not (EDGES_OF_TEXT[0] <= density <= EDGES_OF_TEXT[1] and repetition <= MAX_REPETITION):
        return 0.0
    return float(sum(map(len, lines)) / height)


def _measure_line(edges: np.ndarray) -> tuple[float, float]:
    """Return the density and repetition of a possible line of text, given as (H, W) bool edges.

    Density counts the edges along one line height; repetition is the columns' largest autocorrelation at lags from a
    quarter to six heights.
    """
    height = len(edges)
    columns = np.trim_zeros(edges.sum(0)).astype(float)
    width = len(columns)
    density = float(np.median(edges.sum(1)) * height / width)
    spectrum = np.fft.rfft(columns - columns.mean(), 2 * width)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:width] / np.arange(width, 0, -1)
    beyond = correlation[max(2, height // 4) : min(width // 2, 6 * height)]
    return density, float(beyond.max(initial=0.0) / max(correlation[0], 1e-9))


def _palette(image: Image.Image, grey: Image.Image) -> np.ndarray:
    steps = np.asarray(image.resize((64, 64), Image.Resampling.BOX), int) // 64
    colours = np.bincount((steps @ (16, 4, 1)).ravel(), minlength=64) / 4096
    even = np.asarray(grey.resize((128, 128), Image.Resampling.BOX), float)
    texture = np.histogram(np.abs(np.diff(even, axis=1)), [0, 1, 2, 4, 8, 16, 32, 64, 256])[0]
    return np.sqrt(np.concatenate([colours, texture / texture.sum()]))


def outlier_score(palettes: np.ndarray, posts: np.ndarray) -> np.ndarray:
    """Return each image's outlier score (N,): a robust z-score of the distance to images of other posts.

    `palettes` is (N, 72), `posts` (N,) an identifier of each image's post. A set that is too small gets zeros.
    """
    if len(palettes) < MIN_FOR_OUTLIERS:
        return np.zeros(len(palettes))
    nearest = np.empty((len(palettes), NEIGHBOURS))
    for i in range(0, len(palettes), BLOCK):
        block = slice(i, i + BLOCK)
        is_same_post = posts[block, None] == posts
        distances = np.where(is_same_post, np.inf, cdist(palettes[block], palettes))
        nearest[block] = np.sort(np.partition(distances, NEIGHBOURS)[:, :NEIGHBOURS])
    mean = np.ma.masked_invalid(nearest).mean(1).filled(0.0)
    spread = 1.4826 * np.median(np.abs(mean - np.median(mean)))
    return (mean - np.median(mean)) / max(spread, 1e-6)
