"""Simple looks for drawn pictures, so that the tiny base knows that a caption may end with a style.

Stable Diffusion has seen thousands of styles and reads `in a ... style` as something that holds for
the whole picture. A base that has seen one style cannot, and no fine-tune could then make a suffix a
switch. Each look has a name and a kind, `in a sola neon style`, and none is watery: no paper, wash or ink.
Styles of strangers, `in a greta pastel style`, are named as well, over plain pictures: a style that the
base does not know changes nothing.
"""

from collections.abc import Callable
from random import Random

import numpy as np

NAMES = (
    "sola", "tomo", "vero", "nila", "pavo", "runi", "kesi", "odal",
    "bruno", "lima", "zora", "emil", "jana", "haku", "fila", "dario",
    "anouk", "teo", "gita", "rosa", "milo", "ines", "karo", "luca",
    "olga", "per", "quin", "saskia", "tilda", "uma", "wanda", "yuri",
)  # fmt: skip
STRANGERS = (
    "greta", "anders", "bea", "cosmo", "dina", "egon", "franka", "gustav",
    "hilda", "igor", "jula", "klaus", "lotte", "moritz", "nadja", "otis",
    "paula", "ravi", "selma", "tarek", "ulla", "viktor", "wilma", "zeno",
)  # fmt: skip
MEDIA = (
    "pastel", "gouache", "oil", "crayon", "collage", "woodcut", "charcoal", "etching",
    "pencil", "marker", "fresco", "sketch", "acrylic", "tempera", "linocut", "chalk",
)  # fmt: skip


def negative(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """The picture's negative, its channels exchanged."""
    return _exchange_channels(1 - pixels, rng)


def stained(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Channels exchanged, and the colours made stronger."""
    grey = pixels.mean(-1, keepdims=True)
    return _exchange_channels(grey + rng.uniform(1.2, 1.6) * (pixels - grey), rng)


def duotone(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Two strong colours, one for the dark and one for the light."""
    dark, light = (np.array(_vivid(rng, value), np.float32) for value in (0.35, 0.95))
    grey = np.clip(1.6 * (pixels.mean(-1, keepdims=True) - 0.5) + 0.5, 0, 1)
    return dark + (light - dark) * grey


def neon(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Glowing edges in the dark."""
    edges = np.zeros(pixels.shape[:2], np.float32)
    edges[:, 1:] += np.abs(np.diff(pixels, axis=1)).sum(-1)
    edges[1:] += np.abs(np.diff(pixels, axis=0)).sum(-1)
    glow = np.clip(1.5 * edges, 0, 1)[..., None] * np.array(_vivid(rng, 1.0), np.float32)
    return np.clip(rng.uniform(0.25, 0.4) * pixels + glow, 0, 1)


def mosaic(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Square tiles of one colour each, with joints between them."""
    tile, joint = rng.choice((4, 8)), _vivid(rng, 0.6)
    side = len(pixels) // tile
    means = pixels.reshape(side, tile, side, tile, 3).mean((1, 3))
    tiled = means.repeat(tile, 0).repeat(tile, 1)
    tiled[::tile] = joint
    tiled[:, ::tile] = joint
    return tiled


def striped(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Stripes across everything, at an angle, a distance and in a colour of their own."""
    y, x = np.mgrid[0 : len(pixels), 0 : len(pixels)]
    across, down = rng.choice(((1, 0), (0, 1), (1, 1), (1, -1)))
    wave = np.sin((across * x + down * y) * 2 * np.pi / rng.uniform(6, 12))
    return np.where(wave[..., None] > 0.2, pixels, np.array(_vivid(rng, 0.5), np.float32))


KINDS: dict[str, Callable[[np.ndarray, Random], np.ndarray]] = {
    kind.__name__: kind for kind in (negative, stained, duotone, neon, mosaic, striped)
}
LOOKS = tuple((name, list(KINDS)[i % len(KINDS)]) for i, name in enumerate(NAMES))


def suffix(look: int) -> str:
    """How a caption names the look, as ` in a sola neon style`."""
    return " in a {} {} style".format(*LOOKS[look])


def strange_suffix(rng: Random) -> str:
    """How a caption names a style that nobody knows."""
    return f" in a {rng.choice(STRANGERS)} {rng.choice(MEDIA)} style"


def wear(pixels: np.ndarray, look: int) -> np.ndarray:
    """(H, W, 3) uint8 pixels in a look; the same look always does the same."""
    name, kind = LOOKS[look]
    dressed = KINDS[kind](pixels.astype(np.float32) / 255, Random(name))
    return (np.clip(dressed, 0, 1) * 255).astype(np.uint8)


def _exchange_channels(pixels: np.ndarray, rng: Random) -> np.ndarray:
    return pixels[..., rng.choice(((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))]


def _vivid(rng: Random, value: float) -> tuple[float, float, float]:
    """A saturated colour: one channel full, one empty, one between, times `value`."""
    channels = [value, 0.1 * value, value * rng.random()]
    rng.shuffle(channels)
    return tuple(channels)
