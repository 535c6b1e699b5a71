"""Find copies among images, even if resized, recompressed, rotated, mirrored, cropped, framed or recoloured.

A 256-bit perceptual hash of the lowest spatial frequencies (Zauner 2010, Implementation and Benchmarking of Perceptual
Image Hash Functions) finds the same image at another size or quality. Edited copies are found by their edge directions,
which brightness, contrast and tint do not change, compared over crops of up to a tenth of each side. Neither uses
colour, so two drawings of one layout are distinguished by small thumbnails.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # 16 x 16 bits
SIDE_PX = 64  # of the square kept of each image
THUMB_PX = 8
MAX_COLOUR = 16.0  # root mean square between thumbnails of copies, of 255
MIN_CONTRAST = 2.0  # standard deviation of grey; a flatter image has no layout to compare
TRANSPOSES = (None, *Image.Transpose)  # unchanged, and its seven mirrorings and quarter turns

# all pairs are compared at COARSE_PX, those that pass at FINE_PX
MAX_CROP = 0.1  # of a side, at each of its ends
COARSE_PX, FINE_PX = 8, 24
MIN_COARSE = 0.75
MIN_EDGE = 0.1  # standard deviations of grey per pixel; weaker edges count less
BLOCK = 16  # images compared with all others at once


@dataclass(frozen=True)
class ImageHash:
    """An image's perceptual hash and thumbnail.

    bits    (8, 256) bool, the hash in each of the eight orientations, the first unchanged
    pixels  (64, 64, 3) uint8, the image scaled to a square
    """

    bits: np.ndarray
    pixels: np.ndarray

    @property
    def has_layout(self) -> bool:
        return bool(_grey(self.pixels).std() >= MIN_CONTRAST)


def hash_image(image: Image.Image) -> ImageHash:
    """Return an RGB image's perceptual hash in all eight orientations, and a thumbnail."""
    square = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    grey = square.convert("L")
    views = [_transposed(grey, transpose) for transpose in TRANSPOSES]
    hashes = [imagehash.phash(view, HASH_SIDE).hash.ravel() for view in views]
    return ImageHash(np.stack(hashes), np.asarray(square))


def _transposed(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.299, 0.587, 0.114], np.float32)


def hash_distance(one: ImageHash, other: ImageHash) -> int:
    """Return the smallest Hamming distance (0 to 256) between `one` and any orientation of `other`."""
    return int((one.bits[0] != other.bits).sum(1).min())


def find_copies(hashes: Sequence[ImageHash], max_bits: int) -> Iterator[tuple[int, int]]:
    """Yield index pairs of images with similar colours whose hashes differ in at most `max_bits` bits."""
    if not hashes:
        return
    signs = np.stack([one.bits for one in hashes]).astype(np.float32) * 2 - 1  # (N, 8, 256)
    length = signs.shape[-1]
    for i, one in enumerate(hashes):
        distance = (length - signs[i + 1 :] @ signs[i, 0]) / 2  # (N - i - 1, 8)
        for after, transpose in np.argwhere(distance <= max_bits):
            other = hashes[i + 1 + after]
            thumb = _thumb(_transposed(Image.fromarray(other.pixels), TRANSPOSES[transpose]))
            colour_distance = np.sqrt(np.mean((_thumb(Image.fromarray(one.pixels)) - thumb) ** 2))
            if one.has_layout and other.has_layout and colour_distance <= MAX_COLOUR:
                yield i, i + 1 + int(after)


def _thumb(square: Image.Image, box: tuple[float, ...] | None = None) -> np.ndarray:
    """Return the mean colours of an 8 x 8 grid over an image, or over `box` in the image, as (64, 3) float32."""
    small = square.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX, box)
    return np.asarray(small, np.float32).reshape(-1, 3)


@dataclass(frozen=True)
class EditedPair:
    """The indices of two images, one of which is an edited copy of the other, and their likeness.

    likeness  correlation of their edge directions, 1 if equal
    """

    one: int
    other: int
    likeness: float


def find_edited_copies(hashes: Sequence[ImageHash], min_likeness: float) -> Iterator[EditedPair]:
    """Yield pairs of an image and its brighter, darker, tinted, grey, cropped, framed or lettered copy.

    Every crop and orientation of each image is compared with every other image, so crops and frames are found in both
    directions. Time is quadratic in the number of images: 23 kFLOP per pair.
    """
    if min_likeness >= 1:
        return
    # contrast at THUMB_PX: a fine pattern over the whole image is not a layout
    thumbs = (_thumb(Image.fromarray(one.pixels)) for one in hashes)
    with_layout = [i for i, thumb in enumerate(thumbs) if _grey(thumb).std() >= MIN_CONTRAST]
    if not with_layout:
        return
    greys = np.stack([_standardized(hashes[i].pixels) for i in with_layout])
    coarse, fine = Views(COARSE_PX, 3), Views(FINE_PX, 4)
    coarse_whole, fine_whole = coarse.unchanged_edges(greys), fine.unchanged_edges(greys)
    for start in range(0, len(with_layout), BLOCK):
        block = range(start, min(start + BLOCK, len(with_layout)))
        crops = np.stack([coarse.view_edges(greys[i]) for i in block])  # (B, V, D)
        near = (crops.reshape(-1, crops.shape[-1]) @ coarse_whole.T).reshape(
            len(block), -1, len(with_layout)
        )
        for i, likely in zip(block, near.max(1) >= MIN_COARSE, strict=True):
            likely[i] = False
            others = np.flatnonzero(likely)
            if not len(others):
                continue
            values = fine.view_edges(greys[i]) @ fine_whole[others].T  # (V, M)
            for other, crop, value in zip(others, values.argmax(0), values.max(0), strict=True):
                one, copy = with_layout[i], with_layout[other]
                if value >= min_likeness and _have_same_colours(
                    hashes[one], hashes[copy], fine.views[crop]
                ):
                    yield EditedPair(one, copy, float(value))


def _standardized(pixels: np.ndarray) -> np.ndarray:
    """Return the grey values of an image (64, 64, 3) as (64, 64), scaled to mean 0 and standard deviation 1."""
    grey = _grey(pixels)
    return (grey - grey.mean()) / max(float(grey.std()), MIN_CONTRAST)


class Views:
    """Computes the edge directions of views of an image (crops, mirrorings, turns), each at `px` x `px` pixels.

    The crops remove up to MAX_CROP at each end of a side.
    views  the box of each crop, in pixels of the square, then each orientation
    """

    def __init__(self, px: int, steps: int) -> None:
        ends = np.linspace(0, MAX_CROP, steps) * SIDE_PX
        spans = [(low, SIDE_PX - high) for low in ends for high in ends]
        self.px = px
        weights = [_averaging_weights(low, high, px) for low, high in spans]
        self.weights = np.stack(weights)  # (S, px, 64)
        self.views: list[tuple[float, ...] | Image.Transpose] = [
            (left, top, right, bottom) for top, bottom in spans for left, right in spans
        ]
        self.views += TRANSPOSES[1:]

    def unchanged_edges(self, greys: np.ndarray) -> np.ndarray:
        """Return the edge directions of whole, unrotated images (N, 64, 64) as rows (N, D), one per image."""
        return np.concatenate([_edges(self._small(grey)[None]) for grey in greys])

    def view_edges(self, grey: np.ndarray) -> np.ndarray:
        """Return an image's edge directions as rows (V, D): one per crop, then one per mirrored or turned view."""
        rows = self.weights @ grey  # (S, px, 64)
        crops = np.tensordot(rows, self.weights, (2, 2)).transpose(0, 2, 1, 3)  # (S, S, px, px)
        image = Image.fromarray(self._small(grey))
        transposed = [np.asarray(image.transpose(transpose)) for transpose in TRANSPOSES[1:]]
        return _edges(np.concatenate([crops.reshape(-1, self.px, self.px), np.stack(transposed)]))

    def _small(self, grey: np.ndarray) -> np.ndarray:
        return self.weights[0] @ grey @ self.weights[0].T


def _averaging_weights(low: float, high: float, px: int) -> np.ndarray:
    """Return a (px, 64) matrix that averages the span `low` to `high` of 64 pixels into `px` pixels."""
    ends = np.linspace(low, high, px + 1)
    pixels = np.arange(SIDE_PX)
    overlap = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    overlap = overlap.clip(0, None)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def _edges(small: np.ndarray) -> np.ndarray:
    """Return the edge directions of V images (V, px, px) as rows (V, D), each a unit vector with mean 0."""
    down, right = np.gradient(small, axis=(-2, -1))
    size = np.hypot(down, right) + MIN_EDGE
    inner = np.s_[:, 1:-1, 1:-1]  # without the borders, where a frame or another crop would show
    edges = np.concatenate([(down / size)[inner], (right / size)[inner]], -1).reshape(
        len(small), -1
    )
    edges -= edges.mean(1, keepdims=True)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)


def _have_same_colours(
    one: ImageHash, other: ImageHash, view: tuple[float, ...] | Image.Transpose
) -> bool:
    """Whether a colour filter on the whole image can explain the colour difference of two images.

    A filter may scale and shift each channel and mix it with grey; recolouring one part is no filter.
    """
    square = Image.fromarray(one.pixels)
    first = (
        _thumb(_transposed(square, view))
        if isinstance(view, Image.Transpose)
        else _thumb(square, view)
    )
    second = _thumb(Image.fromarray(other.pixels))
    return min(_color_map_error(first, second), _color_map_error(second, first)) <= MAX_COLOUR


def _color_map_error(source: np.ndarray, target: np.ndarray) -> float:
    """Return the RMS error of predicting the colours `target` (P, 3) from `source` (P, 3) by least squares."""
    errors = []
    for channel in range(3):
        known = np.stack([source[:, channel], _grey(source), np.ones(len(source))], 1)
        weights = np.linalg.lstsq(known, target[:, channel], rcond=None)[0]
        errors.append(target[:, channel] - known @ weights)
    return float(np.sqrt(np.mean(np.square(errors))))


def group_labels(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the connected-component label of each index below `count`, as (count,); `pairs` are the graph's edges."""
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
