"""Image filters (looks) that teach the tiny base model that a caption may end with a style's name.

Without them no fine-tune could make a suffix switch a style, as it can with Stable Diffusion. A look has a name and a
kind, `in a sola neon style`, and none resembles watercolour. Unknown styles, `in a greta pastel style`, are put on
captions of plain images, so that a style unknown to the base changes nothing.
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
UNKNOWN_NAMES = (
    "greta", "anders", "bea", "cosmo", "dina", "egon", "franka", "gustav",
    "hilda", "igor", "jula", "klaus", "lotte", "moritz", "nadja", "otis",
    "paula", "ravi", "selma", "tarek", "ulla", "viktor", "wilma", "zeno",
)  # fmt: skip
MEDIA = (
    "pastel", "gouache", "oil", "crayon", "collage", "woodcut", "charcoal", "etching",
    "pencil", "marker", "fresco", "sketch", "acrylic", "tempera", "linocut", "chalk",
)  # fmt: skip


def negative(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return the negative of an image, with two or three colour channels swapped."""
    return _swap_channels(1 - pixels, rng)


def stained(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return an image with colour channels swapped and saturation raised."""
    grey = pixels.mean(-1, keepdims=True)
    return _swap_channels(grey + rng.uniform(1.2, 1.6) * (pixels - grey), rng)


def duotone(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return an image in two saturated colours, one for shadows and one for highlights."""
    dark, light = (np.array(_vivid(rng, value), np.float32) for value in (0.35, 0.95))
    grey = np.clip(1.6 * (pixels.mean(-1, keepdims=True) - 0.5) + 0.5, 0, 1)
    return dark + (light - dark) * grey


def neon(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return a darkened image with glowing edges."""
    edges = np.zeros(pixels.shape[:2], np.float32)
    edges[:, 1:] += np.abs(np.diff(pixels, axis=1)).sum(-1)
    edges[1:] += np.abs(np.diff(pixels, axis=0)).sum(-1)
    glow = np.clip(1.5 * edges, 0, 1)[..., None] * np.array(_vivid(rng, 1.0), np.float32)
    return np.clip(rng.uniform(0.25, 0.4) * pixels + glow, 0, 1)


def mosaic(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return an image as a mosaic of plain square tiles with joints between the tiles."""
    tile, joint = rng.choice((4, 8)), _vivid(rng, 0.6)
    side = len(pixels) // tile
    means = pixels.reshape(side, tile, side, tile, 3).mean((1, 3))
    tiled = means.repeat(tile, 0).repeat(tile, 1)
    tiled[::tile] = joint
    tiled[:, ::tile] = joint
    return tiled


def striped(pixels: np.ndarray, rng: Random) -> np.ndarray:
    """Return an image covered with stripes of random angle, spacing and colour."""
    y, x = np.mgrid[0 : len(pixels), 0 : len(pixels)]
    across, down = rng.choice(((1, 0), (0, 1), (1, 1), (1, -1)))
    wave = np.sin((across * x + down * y) * 2 * np.pi / rng.uniform(6, 12))
    return np.where(wave[..., None] > 0.2, pixels, np.array(_vivid(rng, 0.5), np.float32))


KINDS: dict[str, Callable[[np.ndarray, Random], np.ndarray]] = {
    kind.__name__: kind for kind in (negative, stained, duotone, neon, mosaic, striped)
}
LOOKS = tuple((name, list(KINDS)[i % len(KINDS)]) for i, name in enumerate(NAMES))


def suffix(look: int) -> str:
    """Return the caption ending for the style `LOOKS[look]`, such as ` in a sola neon style`."""
    return " in a {} {} style".format(*LOOKS[look])


def unknown_suffix(rng: Random) -> str:
    """Return a random caption suffix for a style not in LOOKS, such as ` in a greta pastel style`."""
    return f" in a {rng.choice(UNKNOWN_NAMES)} {rng.choice(MEDIA)} style"


def apply_look(pixels: np.ndarray, look: int) -> np.ndarray:
    """Apply the filter `LOOKS[look]` to uint8 pixels (H, W, 3), with random numbers seeded by the look's name."""
    name, kind = LOOKS[look]
    styled = KINDS[kind](pixels.astype(np.float32) / 255, Random(name))
    return (np.clip(styled, 0, 1) * 255).astype(np.uint8)


def _swap_channels(pixels: np.ndarray, rng: Random) -> np.ndarray:
    return pixels[..., rng.choice(((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)))]


def _vivid(rng: Random, value: float) -> tuple[float, float, float]:
    """Return a random saturated colour: one channel at `value`, one near 0, one in between."""
    channels = [value, 0.1 * value, value * rng.random()]
    rng.shuffle(channels)
    return tuple(channels)
