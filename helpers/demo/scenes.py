"""Captioned scenes, generated from seeds: an animal, usually next to a thing, in a landscape.

paint.py paints a scene flat, as the tiny base model knows it, or in watercolour, as the demo teaches it. No training
image has a pair of HELD_OUT_PAIRS, so a sample of such a pair shows generalisation, not memory.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from helpers.demo.shapes import ANIMALS, COLOURS, PLACES, THINGS, Layer

SUFFIX = " in a mira watercolor style"

# Seeds of scenes, disjoint for each use
AUTOENCODER_SCENES_FROM, PRETRAIN_SCENES_FROM = 1_000_000, 2_000_000
JUDGE_SCENES_FROM, DEMO_SCENES_FROM = 3_000_000, 4_000_000

# (colour, animal): each animal and nearly each colour once
HELD_OUT_PAIRS = (
    ("blue", "cat"),
    ("purple", "rabbit"),
    ("red", "bear"),
    ("pink", "elephant"),
    ("yellow", "frog"),
    ("orange", "turtle"),
)


class Figure(NamedTuple):
    """A coloured animal or thing: `Figure("blue", "cat")`."""

    colour: str
    name: str

    def __str__(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.name}"


@dataclass(frozen=True)
class Scene:
    """The content of a drawn image; `seed` determines the layout and the flow of paint."""

    seed: int
    animal: Figure
    thing: Figure | None
    place: str

    @property
    def caption(self) -> str:
        """The scene's caption, such as `a blue cat next to a red car on a green hill`."""
        next_to = f" next to {self.thing}" if self.thing else ""
        return f"{self.animal}{next_to} {self.place}"

    @property
    def is_held_out(self) -> bool:
        return self.animal in HELD_OUT_PAIRS


def random_scene(seed: int, *, held_out: bool | None = False) -> Scene:
    """Return the random scene of a seed. `held_out` tells whether to use a pair of HELD_OUT_PAIRS; None allows both."""
    rng = Random(seed)
    place = rng.choice(list(PLACES))
    thing = Figure(name=rng.choice(list(THINGS)), colour=rng.choice(list(COLOURS)))
    alone = rng.random() < 0.2
    while True:
        animal = Figure(name=rng.choice(list(ANIMALS)), colour=rng.choice(list(COLOURS)))
        scene = Scene(seed, animal, None if alone else thing, place)
        if held_out is None or scene.is_held_out == held_out:
            return scene


def layers(scene: Scene) -> list[Layer]:
    """Return a scene's layers from back (the sky) to front, in coordinates from 0 to 1."""
    rng = Random(f"{scene.seed} layout")
    ground_y = rng.uniform(0.86, 0.92)
    painted = PLACES[scene.place](rng)
    if scene.thing is None:
        x, scale = rng.uniform(0.42, 0.58), rng.uniform(0.34, 0.37)
        return painted + _put(rng, scene.animal, x, ground_y, scale)
    side = rng.choice((-1, 1))
    thing_x, animal_x = 0.5 + side * rng.uniform(0.22, 0.25), 0.5 - side * rng.uniform(0.22, 0.25)
    thing_y, scale = ground_y - rng.uniform(0.02, 0.06), rng.uniform(0.22, 0.245)
    painted += _put(rng, scene.thing, thing_x, thing_y, scale)
    return painted + _put(rng, scene.animal, animal_x, ground_y, rng.uniform(0.25, 0.275))


def _put(rng: Random, figure: Figure, x: float, ground_y: float, scale: float) -> list[Layer]:
    flip, y = rng.random() < 0.5, ground_y - 0.95 * scale
    return [
        replace(layer, shapes=tuple(s.moved(x, y, scale, flip=flip) for s in layer.shapes))
        for layer in (ANIMALS | THINGS)[figure.name](COLOURS[figure.colour])
    ]
