"""Find copies among images, even if resized, recompressed, rotated, mirrored, cropped, framed or recoloured.

A 256-bit perceptual hash (Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions) finds an
image at another size or quality. Edge directions, which brightness and tint do not change, find edited copies, over
crops of up to a tenth of each side. Neither uses colour, so thumbnails distinguish two drawings of one layout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
TRANSPOSES = (None, *Image.Transpose)  # unchanged, and seven mirrorings and quarter turns
View = Image.Transpose | tuple[float, ...] | None  # or a box of a crop

# all pairs are compared at COARSE_PX, those that pass at FINE_PX
MAX_CROP = 0.1  # of a side, at each of its ends
COARSE_PX, FINE_PX = 8, 24
MIN_COARSE = 0.75
MIN_EDGE = 0.1  # standard deviations of grey per pixel; weaker edges count less
BLOCK = 16  # images compared with all others at once


@dataclass(frozen=True)
class ImageHash:
    """An image's perceptual hash and thumbnail."""

    bits: np.ndarray  # (8, 256) bool, the hash in each of the eight orientations, unchanged first
    pixels: np.ndarray  # (64, 64, 3) uint8, the image scaled to a square

    @property
    def has_layout(self) -> bool:
        return bool(_grey(self.pixels).std() >= MIN_CONTRAST)


def hash_image(image: Image.Image) -> ImageHash:
    """Return an RGB image's perceptual hash in all eight orientations, and a thumbnail."""
    square = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    grey = square.convert("L")
    views = [grey, *map(grey.transpose, Image.Transpose)]
    hashes = [imagehash.phash(view, HASH_SIDE).hash.ravel() for view in views]
    return ImageHash(np.stack(hashes), np.asarray(square))


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
            thumb = _thumb(other, TRANSPOSES[transpose])
            colour_distance = np.sqrt(np.mean((_thumb(one) - thumb) ** 2))
            if one.has_layout and other.has_layout and colour_distance <= MAX_COLOUR:
                yield i, i + 1 + int(after)


def _thumb(image: ImageHash, view: View = None) -> np.ndarray:
    """Return the mean colours of an 8 x 8 grid over a view of an image, as (64, 3) float32."""
    square, box = Image.fromarray(image.pixels), view
    if isinstance(view, Image.Transpose):
        square, box = square.transpose(view), None
    small = square.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX, box)
    return np.asarray(small, np.float32).reshape(-1, 3)


class EditedPair(NamedTuple):
    """The indices of an image and its edited copy, and their likeness."""

    one: int
    other: int
    likeness: float  # the correlation of their edge directions, 1 if equal


def find_edited_copies(hashes: Sequence[ImageHash], min_likeness: float) -> Iterator[EditedPair]:
    """Yield pairs of an image and its brighter, darker, tinted, grey, cropped, framed or lettered copy.

    Each crop and orientation of an image is compared with all other images. Time is quadratic: 23 kFLOP per pair.
    """
    if min_likeness >= 1:
        return
    # contrast at THUMB_PX: a fine pattern over the whole image is not a layout
    contrasts = (_grey(_thumb(one)).std() for one in hashes)
    with_layout = [i for i, contrast in enumerate(contrasts) if contrast >= MIN_CONTRAST]
    if not with_layout:
        return
    greys = np.stack([_standardized(hashes[i].pixels) for i in with_layout])
    coarse, fine = Views(COARSE_PX, 3), Views(FINE_PX, 4)
    coarse_whole, fine_whole = coarse.unchanged_edges(greys), fine.unchanged_edges(greys)
    for start in range(0, len(with_layout), BLOCK):
        block = range(start, min(start + BLOCK, len(with_layout)))
        crops = np.stack([coarse.view_edges(greys[i]) for i in block])  # (B, V, D)
        near = crops.reshape(-1, crops.shape[-1]) @ coarse_whole.T
        near = near.reshape(len(block), -1, len(with_layout)).max(1)
        for i, likely in zip(block, near >= MIN_COARSE, strict=True):
            likely[i] = False
            others = np.flatnonzero(likely)
            if not len(others):
                continue
            values = fine.view_edges(greys[i]) @ fine_whole[others].T  # (V, M)
            for other, crop, value in zip(others, values.argmax(0), values.max(0), strict=True):
                one, copy = with_layout[i], with_layout[other]
                if value < min_likeness:
                    continue
                thumb = _thumb(hashes[one], fine.views[crop])
                if _have_same_colours(thumb, _thumb(hashes[copy])):
                    yield EditedPair(one, copy, float(value))


def _standardized(pixels: np.ndarray) -> np.ndarray:
    """Return an image (64, 64, 3) in grey as (64, 64), scaled to mean 0 and standard deviation 1."""
    grey = _grey(pixels)
    return (grey - grey.mean()) / max(float(grey.std()), MIN_CONTRAST)


class Views:
    """Crops, mirrorings and turns of an image, each at `px` x `px` pixels, and their edge directions."""

    def __init__(self, px: int, steps: int) -> None:
        ends = np.linspace(0, MAX_CROP, steps) * SIDE_PX
        spans = [(low, SIDE_PX - high) for low in ends for high in ends]
        self.px = px
        self.weights = np.stack([_averaging_weights(*span, px) for span in spans])  # (S, px, 64)
        crops = [(left, top, right, bottom) for top, bottom in spans for left, right in spans]
        self.views: list[View] = [*crops, *Image.Transpose]  # boxes in pixels of the square

    def unchanged_edges(self, greys: np.ndarray) -> np.ndarray:
        """Return the edge directions of whole images (N, 64, 64) as rows (N, D)."""
        return _edges(self.weights[0] @ greys @ self.weights[0].T)

    def view_edges(self, grey: np.ndarray) -> np.ndarray:
        """Return the edge directions of each view of an image (64, 64) as rows (V, D)."""
        rows = self.weights @ grey  # (S, px, 64)
        crops = np.tensordot(rows, self.weights, (2, 2)).transpose(0, 2, 1, 3)  # (S, S, px, px)
        image = Image.fromarray(crops[0, 0])  # whole
        transposed = [np.asarray(image.transpose(transpose)) for transpose in Image.Transpose]
        return _edges(np.concatenate([crops.reshape(-1, self.px, self.px), np.stack(transposed)]))


def _averaging_weights(low: float, high: float, px: int) -> np.ndarray:
    """Return a (px, 64) matrix that averages the span `low` to `high` of 64 pixels into `px` pixels."""
    ends = np.linspace(low, high, px + 1)
    pixels = np.arange(SIDE_PX)
    overlap = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    overlap = overlap.clip(0)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def _edges(small: np.ndarray) -> np.ndarray:
    """Return the edge directions of images (V, px, px) as rows (V, D), each a unit vector with mean 0."""
    down, right = np.gradient(small, axis=(-2, -1))
    size = np.hypot(down, right) + MIN_EDGE
    inner = np.s_[:, 1:-1, 1:-1]  # without the borders, where a frame or another crop would show
    edges = np.concatenate([(down / size)[inner], (right / size)[inner]], -1)
    edges = edges.reshape(len(small), -1)
    edges -= edges.mean(1, keepdims=True)
    return edges / np.maximum(np.linalg.norm(edges, axis=1, keepdims=True), 1e-6)


def _have_same_colours(first: np.ndarray, second: np.ndarray) -> bool:
    """Return True if a colour filter turns one thumbnail into the other: it scales, shifts and greys whole channels."""
    return min(_color_map_error(first, second), _color_map_error(second, first)) <= MAX_COLOUR


def _color_map_error(source: np.ndarray, target: np.ndarray) -> float:
    """Return the RMS error of predicting the colours `target` (P, 3) from `source` by least squares."""
    errors = []
    for channel in range(3):
        known = np.stack([source[:, channel], _grey(source), np.ones(len(source))], 1)
        weights = np.linalg.lstsq(known, target[:, channel], rcond=None)[0]
        errors.append(target[:, channel] - known @ weights)
    return float(np.sqrt(np.mean(np.square(errors))))


def group_labels(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return each index's connected component as labels (count,). `pairs` are the edges of the graph."""
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
