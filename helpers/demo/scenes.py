"""Generate captioned scenes from seeds: an animal, usually next to a thing, in a landscape.

A scene can be painted in two styles (paint.py): flat, which the tiny base model knows, and watercolour, which the demo
teaches it. No training image has a pair of HELD_OUT_PAIRS, so a sample of such a pair shows generalisation, not memory.
"""

from dataclasses import dataclass
from random import Random

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


@dataclass(frozen=True)
class Figure:
    """A named, coloured animal or thing: `Figure("cat", "blue")`."""

    name: str
    colour: str

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
        return (self.animal.colour, self.animal.name) in HELD_OUT_PAIRS


def random_scene(seed: int, *, held_out: bool | None = False) -> Scene:
    """Return the random scene that a seed determines.

    held_out  False: never a pair of HELD_OUT_PAIRS; True: always one; None: any pair
    """
    rng = Random(seed)
    place = rng.choice(list(PLACES))
    thing = Figure(rng.choice(list(THINGS)), rng.choice(list(COLOURS)))
    alone = rng.random() < 0.2
    while True:
        animal = Figure(rng.choice(list(ANIMALS)), rng.choice(list(COLOURS)))
        scene = Scene(seed, animal, None if alone else thing, place)
        if held_out is None or scene.is_held_out == held_out:
            return scene


def layers(scene: Scene) -> list[Layer]:
    """Return a scene's layers from back (the sky) to front, in coordinates from 0 to 1."""
    rng = Random(f"{scene.seed} layout")
    ground_y = rng.uniform(0.86, 0.92)
    painted = PLACES[scene.place](rng)
    if scene.thing is None:
        return painted + _put(
            rng, scene.animal, rng.uniform(0.42, 0.58), ground_y, rng.uniform(0.34, 0.37)
        )
    side = rng.choice((-1, 1))
    thing_x, animal_x = 0.5 + side * rng.uniform(0.22, 0.25), 0.5 - side * rng.uniform(0.22, 0.25)
    painted += _put(
        rng, scene.thing, thing_x, ground_y - rng.uniform(0.02, 0.06), rng.uniform(0.22, 0.245)
    )
    return painted + _put(rng, scene.animal, animal_x, ground_y, rng.uniform(0.25, 0.275))


def _put(rng: Random, figure: Figure, x: float, ground_y: float, scale: float) -> list[Layer]:
    """Return a figure's layers, scaled and moved to stand on the ground at `x`."""
    draw = (ANIMALS | THINGS)[figure.name]
    flip = rng.random() < 0.5
    y = ground_y - 0.95 * scale
    return [
        Layer(
            layer.colour, tuple(s.moved(x, y, scale, flip=flip) for s in layer.shapes), layer.inked
        )
        for layer in draw(COLOURS[figure.colour])
    ]
