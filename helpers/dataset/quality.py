"""Figures by which a picture is judged unfit to train on. Each is cheap, and shown with the reason it gives.

They see pixels, not meaning: a soft pastel is not blurry among its like, and a quote over a photograph is no text.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

SIDE_PX = 256  # to which a picture is scaled down before it is measured
TEXT_SIDE_PX = 384
TEXT_SHORT_SIDE_PX = 256  # at least: in a phone's screenshot of 177 x 384 px letters are dots
STROKE = 32  # a step between neighbouring pixels, of 255, that counts as the edge of a stroke
LEAST_STROKES = 12  # edges along a row of text
TALLEST_LINE = 0.12  # of the picture's height
EDGES_OF_TEXT = (3.3, 9.5)  # along a stretch as long as a line is high
MOST_REPETITION = 0.38  # as an autocorrelation; of 100 cards in 14 fonts half have under 0.22
LEAST_FOR_ODDNESS = 20  # images; among fewer, none is the odd one
NEIGHBOURS = 5
BLOCK = 256  # pictures compared with all others at once, so that memory stays small


@dataclass(frozen=True)
class Quality:
    """The figures of one picture.

    sharpness   variance of the Laplacian at SIDE_PX (Pech-Pacheco et al. 2000), for comparing a set's pictures
    detail      the same at full size, times the number of pixels, for comparing copies of one picture
    brightness  mean grey, 0 to 255
    text_share  share of the height that lines of text cover, 0 to 1
    palette     (72,) square roots of histograms of colours and of steps between pixels, for finding the odd one out
    """

    sharpness: float
    detail: float
    brightness: float
    text_share: float
    palette: np.ndarray


def measure(image: Image.Image) -> Quality:
    """The figures of an RGB picture."""
    grey = image.convert("L")
    small = _at_most(grey, SIDE_PX)
    return Quality(
        sharpness=_laplacian_variance(small),
        detail=_laplacian_variance(grey) * image.width * image.height,
        brightness=float(np.asarray(small, np.float32).mean()),
        text_share=text_share(grey),
        palette=_palette(image, grey),
    )


def _at_most(image: Image.Image, side_px: int) -> Image.Image:
    factor = min(1.0, side_px / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _laplacian_variance(grey: Image.Image) -> float:
    g = np.asarray(grey, np.float32)
    if min(g.shape) < 3:
        return 0.0
    edges = g[1:-1, :-2] + g[1:-1, 2:] + g[:-2, 1:-1] + g[2:, 1:-1] - 4 * g[1:-1, 1:-1]
    return float(edges.var())


def text_share(grey: Image.Image) -> float:
    """The share of a picture's height that lines of text cover.

    A line is a low band of rows, each crossed by many edges of strokes, between rows with next to none. What repeats
    along its lines (dots, bricks, flowers) and what is denser or sparser than letters (hatching, waves) is a pattern.
    Lettering taller than TALLEST_LINE, slanted, or over a busy ground is not seen.
    """
    side_px = max(TEXT_SIDE_PX, round(TEXT_SHORT_SIDE_PX * max(grey.size) / min(grey.size)))
    pixels = np.asarray(_at_most(grey, side_px), np.int16)
    edges = np.abs(np.diff(pixels, axis=1)) > STROKE
    strokes = edges.sum(1)
    is_inked = np.concatenate([[False], strokes > 1, [False]])
    turns = np.flatnonzero(np.diff(is_inked.astype(np.int8)))
    height = len(pixels)
    lines = [
        edges[top:below]
        for top, below in zip(turns[::2], turns[1::2], strict=True)
        if 3 <= below - top <= TALLEST_LINE * height
        and np.median(strokes[top:below]) >= LEAST_STROKES
    ]
    if not lines:
        return 0.0
    density, repetition = np.median([_of_line(line) for line in lines], axis=0)
    if not (EDGES_OF_TEXT[0] <= density <= EDGES_OF_TEXT[1] and repetition <= MOST_REPETITION):
        return 0.0
    return float(sum(map(len, lines)) / height)


def _of_line(edges: np.ndarray) -> tuple[float, float]:
    """Of a band of rows, (H, W) bool where an edge is: edges along a stretch as long as the band is high; and how far
    the band repeats itself along its way, the largest autocorrelation of its columns from a quarter to six heights on.
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


def oddness(palettes: np.ndarray, posts: np.ndarray) -> np.ndarray:
    """(N,) how far each picture is from its nearest ones of other posts, in spreads above the set's median.

    palettes  (N, 72)
    posts     (N,) whatever tells posts apart
    The spread is the median absolute deviation, which odd ones hardly move. Zeros where the set is too small.
    """
    if len(palettes) < LEAST_FOR_ODDNESS:
        return np.zeros(len(palettes))
    near = np.concatenate(
        [
            _nearest(palettes[i : i + BLOCK], palettes, posts[i : i + BLOCK, None] == posts)
            for i in range(0, len(palettes), BLOCK)
        ]
    )
    mean = np.ma.masked_invalid(near).mean(1).filled(0.0)
    spread = 1.4826 * np.median(np.abs(mean - np.median(mean)))
    return (mean - np.median(mean)) / max(spread, 1e-6)


def _nearest(some: np.ndarray, palettes: np.ndarray, is_left_out: np.ndarray) -> np.ndarray:
    """(B, NEIGHBOURS) distances of some palettes from those nearest to them."""
    away = np.where(is_left_out, np.inf, cdist(some, palettes))
    return np.sort(np.partition(away, NEIGHBOURS, axis=1)[:, :NEIGHBOURS], axis=1)
