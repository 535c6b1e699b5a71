"""Pictures that show the same: resized, recompressed, turned or mirrored copies, found by a perceptual hash.

The hash proposes and the colours confirm. A 256-bit hash of the lowest spatial frequencies (Zauner 2010,
Implementation and Benchmarking of Perceptual Image Hash Functions) hears nothing of colour, so two drawings
of one layout are told apart by a small thumbnail.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # 16 x 16 bits
THUMB_PX = 8
MAX_COLOUR = 16.0  # root mean square between thumbnails of copies, of 255
LEAST_CONTRAST = 2.0  # standard deviation of grey; a flatter picture has no layout to compare
TURNS = (None, *Image.Transpose)  # as it is, and its seven mirrorings and quarter turns


@dataclass(frozen=True)
class Look:
    """What a picture looks like, in each of its eight turns.

    bits    (8, 256) bool, the first as it is
    thumbs  (8, 8, 8, 3) float32, 0 to 255
    """

    bits: np.ndarray
    thumbs: np.ndarray
    has_layout: bool


def look(image: Image.Image) -> Look:
    """Hash an RGB picture in all its turns."""
    side_px = HASH_SIDE * 4
    grey = image.convert("L").resize((side_px, side_px), Image.Resampling.LANCZOS)
    small = image.resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX)
    hashes = [imagehash.phash(_turned(grey, turn), HASH_SIDE).hash.ravel() for turn in TURNS]
    thumbs = [np.asarray(_turned(small, turn), np.float32) for turn in TURNS]
    has_layout = bool(np.asarray(grey, np.float32).std() >= LEAST_CONTRAST)
    return Look(np.stack(hashes), np.stack(thumbs), has_layout)


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def bits_apart(one: Look, other: Look) -> int:
    """How many of the 256 bits differ, in the turn in which the fewest do."""
    return int((one.bits[0] != other.bits).sum(1).min())


def copies(looks: Sequence[Look], max_bits: int) -> Iterator[tuple[int, int]]:
    """Pairs of positions whose pictures are copies of one another."""
    if not looks:
        return
    signs = np.stack([one.bits for one in looks]).astype(np.float32) * 2 - 1  # (N, 8, 256)
    length = signs.shape[-1]
    for i, one in enumerate(looks):
        apart = (length - signs[i + 1 :] @ signs[i, 0]) / 2  # (N - i - 1, 8)
        for after, turn in np.argwhere(apart <= max_bits):
            other = looks[i + 1 + after]
            away = np.sqrt(np.mean((one.thumbs[0] - other.thumbs[turn]) ** 2))
            if one.has_layout and other.has_layout and away <= MAX_COLOUR:
                yield i, i + 1 + int(after)


def joined(count: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """(count,) labels: positions have the same one if pairs lead from one to the other."""
    ends = np.array(pairs, dtype=int).reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]
