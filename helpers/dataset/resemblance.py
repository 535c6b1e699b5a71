"""Pictures that show the same: resized, recompressed, turned, mirrored, cropped, framed and recoloured copies.

Two ways find them. A 256-bit hash of the lowest spatial frequencies (Zauner 2010, Implementation and Benchmarking of
Perceptual Image Hash Functions) finds the very same picture at another size or quality. What was edited is found by the
directions of its edges, which brightness, contrast and tint leave alone, compared over crops of up to a tenth of each
side. Neither hears anything of colour, so two drawings of one layout are told apart by small thumbnails.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # 16 x 16 bits
SIDE_PX = 64  # of the square that is kept of a picture
THUMB_PX = 8
MAX_COLOUR = 16.0  # root mean square between thumbnails of copies, of 255
LEAST_CONTRAST = 2.0  # standard deviation of grey; a flatter picture has no layout to compare
TURNS = (None, *Image.Transpose)  # as it is, and its seven mirrorings and quarter turns

# edges are compared on COARSE_PX among all pictures, and on FINE_PX among those that pass
MAX_CROP = 0.1  # of a side, at each of its ends
COARSE_PX, FINE_PX = 8, 24
MIN_COARSE = 0.75
SOFT = 0.1  # standard deviations of grey a pixel, below which an edge counts less
BLOCK = 16  # pictures compared with all others at once


@dataclass(frozen=True)
class Look:
    """What a picture looks like.

    bits    (8, 256) bool, its hash in each of its eight turns, the first as it is
    pixels  (64, 64, 3) uint8, the picture as a square
    """

    bits: np.ndarray
    pixels: np.ndarray

    @property
    def has_layout(self) -> bool:
        return bool(_grey(self.pixels).std() >= LEAST_CONTRAST)


def look(image: Image.Image) -> Look:
    """Hash an RGB picture in all its turns."""
    square = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    grey = square.convert("L")
    hashes = [imagehash.phash(_turned(grey, turn), HASH_SIDE).hash.ravel() for turn in TURNS]
    return Look(np.stack(hashes), np.asarray(square))


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def bits_apart(one: Look, other: Look) -> int:
    """How many of the 256 bits differ, in the turn in which the fewest do."""
    return int((one.bits[0] != other.bits).sum(1).min())


def copies(looks: Sequence[Look], max_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose pictures are the same by their hashes and colours."""
    if not looks:
        return
    signs = np.stack([one.bits for one in looks]).astype(np.float32) * 2 - 1  # (N, 8, 256)
    length = signs.shape[-1]
    for i, one in enumerate(looks):
        apart = (length - signs[i + 1 :] @ signs[i, 0]) / 2  # (N - i - 1, 8)
        for after, turn in np.argwhere(apart <= max_bits):
            other = looks[i + 1 + after]
            thumb = _thumb(_turned(Image.fromarray(other.pixels), TURNS[turn]))
            away = np.sqrt(np.mean((_thumb(Image.fromarray(one.pixels)) - thumb) ** 2))
            if one.has_layout and other.has_layout and away <= MAX_COLOUR:
                yield i, i + 1 + int(after)


def _thumb(square: Image.Image, box: tuple[float, ...] | None = None) -> np.ndarray:
    """(64, 3) float32, the colours of a picture or of a part of it."""
    small = square.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX, box)
    return np.asarray(small, np.float32).reshape(-1, 3)


@dataclass(frozen=True)
class Likeness:
    """Two pictures, by position, of which one is an edited copy of the other.

    value  correlation of the directions of their edges, 1 where they are the same
    """

    one: int
    other: int
    value: float


def edited_copies(looks: Sequence[Look], min_likeness: float) -> Iterator[Likeness]:
    """Pairs of which one is the other brighter, darker, tinted, grey, cropped, framed or with some lettering on it.

    Every picture's crops and turns are compared with every other picture as it is, so that crops and frames are found
    in both directions. Time grows with the square of the number of pictures: 23 kFLOP a pair.
    """
    if min_likeness >= 1:
        return
    # where it shows at THUMB_PX: a fine pattern over all of a picture is no layout of its own
    thumbs = (_thumb(Image.fromarray(one.pixels)) for one in looks)
    places = [i for i, thumb in enumerate(thumbs) if _grey(thumb).std() >= LEAST_CONTRAST]
    if not places:
        return
    greys = np.stack([_standardized(looks[i].pixels) for i in places])
    coarse, fine = Crops(COARSE_PX, 3), Crops(FINE_PX, 4)
    coarse_whole, fine_whole = coarse.whole(greys), fine.whole(greys)
    for start in range(0, len(places), BLOCK):
        block = range(start, min(start + BLOCK, len(places)))
        crops = np.stack([coarse.all(greys[i]) for i in block])  # (B, V, D)
        near = (crops.reshape(-1, crops.shape[-1]) @ coarse_whole.T).reshape(
            len(block), -1, len(places)
        )
        for i, likely in zip(block, near.max(1) >= MIN_COARSE, strict=True):
            likely[i] = False
            others = np.flatnonzero(likely)
            if not len(others):
                continue
            values = fine.all(greys[i]) @ fine_whole[others].T  # (V, M)
            for other, crop, value in zip(others, values.argmax(0), values.max(0), strict=True):
                one, copy = places[i], places[other]
                if value >= min_likeness and _same_colours(
                    looks[one], looks[copy], fine.views[crop]
                ):
                    yield Likeness(one, copy, float(value))


def _standardized(pixels: np.ndarray) -> np.ndarray:
    """(64, 64) grey of mean 0 and standard deviation 1."""
    grey = _grey(pixels)
    return (grey - grey.mean()) / max(float(grey.std()), LEAST_CONTRAST)


class Crops:
    """The crops of a square picture by up to MAX_CROP at each end of each side, and its turns, `px` wide.

    views  a box in pixels of the square for each crop, then a turn for each turned one
    """

    def __init__(self, px: int, steps: int) -> None:
        ends = np.linspace(0, MAX_CROP, steps) * SIDE_PX
        spans = [(low, SIDE_PX - high) for low in ends for high in ends]
        self.px = px
        self.weights = np.stack([_averages(low, high, px) for low, high in spans])  # (S, px, 64)
        self.views: list[tuple[float, ...] | Image.Transpose] = [
            (left, top, right, bottom) for top, bottom in spans for left, right in spans
        ]
        self.views += TURNS[1:]

    def whole(self, greys: np.ndarray) -> np.ndarray:
        """(N, D) edges of pictures (N, 64, 64) as they are."""
        return np.concatenate([_edges(self._small(grey)[None]) for grey in greys])

    def all(self, grey: np.ndarray) -> np.ndarray:
        """(V, D) edges of each view of a picture (64, 64)."""
        rows = self.weights @ grey  # (S, px, 64)
        crops = np.tensordot(rows, self.weights, (2, 2)).transpose(0, 2, 1, 3)  # (S, S, px, px)
        small = self._small(grey)
        turned = [np.asarray(_turned(Image.fromarray(small), turn)) for turn in TURNS[1:]]
        return _edges(np.concatenate([crops.reshape(-1, self.px, self.px), np.stack(turned)]))

    def _small(self, grey: np.ndarray) -> np.ndarray:
        return self.weights[0] @ grey @ self.weights[0].T


def _averages(low: float, high: float, px: int) -> np.ndarray:
    """(px, 64) weights that average the span from `low` to `high` of 64 pixels into `px` equal parts."""
    ends = np.linspace(low, high, px + 1)
    pixels = np.arange(SIDE_PX)
    covered = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    covered = covered.clip(0, None)
    return (covered / covered.sum(1, keepdims=True)).astype(np.float32)


def _edges(small: np.ndarray) -> np.ndarray:
    """(V, D) directions of the edges of pictures (V, px, px), without their mean and of length 1."""
    down, right = np.gradient(small, axis=(-2, -1))
    size = np.hypot(down, right) + SOFT
    inner = np.s_[:, 1:-1, 1:-1]  # a frame, or another crop, leaves its trace outside of it
    edges = np.concatenate([(down / size)[inner], (right / size)[inner]], -1).reshape(
        len(small), -1
    )
    edges -= edges.mean(1, keepdims=True)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)


def _same_colours(one: Look, other: Look, view: tuple[float, ...] | Image.Transpose) -> bool:
    """Whether one map for the whole picture leads from the colours of one to those of the other.

    Each channel may be scaled, shifted and mixed with grey, as by a filter; a part that alone has another colour is
    no filter's work.
    """
    square = Image.fromarray(one.pixels)
    first = (
        _thumb(_turned(square, view)) if isinstance(view, Image.Transpose) else _thumb(square, view)
    )
    second = _thumb(Image.fromarray(other.pixels))
    return min(_left_over(first, second), _left_over(second, first)) <= MAX_COLOUR


def _left_over(source: np.ndarray, target: np.ndarray) -> float:
    """Root mean square of what the best map from the colours of one (P, 3) to the other's leaves."""
    left = []
    for channel in range(3):
        known = np.stack([source[:, channel], _grey(source), np.ones(len(source))], 1)
        weights = np.linalg.lstsq(known, target[:, channel], rcond=None)[0]
        left.append(target[:, channel] - known @ weights)
    return float(np.sqrt(np.mean(np.square(left))))


def joined(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(count,) labels: positions have the same one if pairs lead from one to the other."""
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
