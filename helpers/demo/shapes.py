"""Animals, things and landscapes, drawn as coloured shapes in layers, which are painted in order.

An animal or thing is drawn in a box from -1 to 1 (y points down), and placed by scenes.py.
"""

from dataclasses import dataclass
from random import Random

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (222, 46, 44),
    "orange": (248, 142, 28),
    "yellow": (252, 216, 44),
    "green": (56, 160, 72),
    "blue": (48, 104, 224),
    "purple": (138, 66, 190),
    "pink": (248, 138, 190),
}
DARK, WHITE = (40, 34, 40), (250, 250, 248)
GLASS, WOOD, CREAM, GREY = (205, 235, 250), (120, 82, 50), (245, 232, 208), (190, 190, 190)


@dataclass(frozen=True)
class Shape:
    """A drawing primitive: an `oval` or `dome` (given by two corners), a `polygon` or a `stroke`."""

    kind: str
    points: tuple[Point, ...]
    width: float = 0.0  # of a stroke

    def moved(self, dx: float, dy: float, scale: float, *, flip: bool = False) -> "Shape":
        """Return the shape scaled about the origin, mirrored if `flip`, then shifted by (dx, dy)."""
        sign = -scale if flip else scale
        points = tuple((dx + sign * x, dy + scale * y) for x, y in self.points)
        return Shape(self.kind, points, self.width * scale)


@dataclass(frozen=True)
class Layer:
    """Shapes of one colour, painted together; if `inked`, outlined in the watercolour style."""

    colour: RGB
    shapes: tuple[Shape, ...]
    inked: bool = False


def _dark(colour: RGB) -> RGB:
    return tuple(round(value - value * 0.28) for value in colour)


def _light(colour: RGB, share: float = 0.5) -> RGB:
    """Return `colour` mixed with white, of which `share` (0 to 1) is the proportion."""
    return tuple(round(value + (255 - value) * share) for value in colour)


def oval(x: float, y: float, rx: float, ry: float) -> Shape:
    return Shape("oval", ((x - rx, y - ry), (x + rx, y + ry)))


def dome(x: float, y: float, rx: float, ry: float) -> Shape:
    """Return the upper half of an oval with centre (x, y) and radii rx and ry."""
    return Shape("dome", ((x - rx, y - ry), (x + rx, y + ry)))


def polygon(*points: Point) -> Shape:
    return Shape("polygon", points)


def box(left: float, top: float, right: float, bottom: float) -> Shape:
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def stroke(width: float, *points: Point) -> Shape:
    return Shape("stroke", points, width)


def pair(shape: Shape) -> tuple[Shape, Shape]:
    """Return a shape and its mirror image across x = 0."""
    return shape, shape.moved(0, 0, 1, flip=True)


def eyes(x: float, y: float, r: float = 0.085) -> Layer:
    return Layer(DARK, pair(oval(x, y, r, r * 1.15)))


def cat(colour: RGB) -> list[Layer]:
    ears = pair(polygon((-0.54, -0.3), (-0.56, -1.0), (-0.06, -0.66)))
    inner_ears = pair(polygon((-0.45, -0.6), (-0.47, -0.84), (-0.24, -0.68)))
    tail = stroke(0.17, (0.4, 0.8), (0.84, 0.66), (0.92, 0.2), (0.74, -0.04))
    nose = polygon((-0.08, -0.16), (0.08, -0.16), (0, -0.06))
    whiskers = stroke(0.03, (0.2, -0.1), (0.62, -0.18)), stroke(0.03, (0.2, -0.04), (0.62, 0.02))
    return [
        Layer(_dark(colour), (tail,), True),
        Layer(colour, (oval(0, 0.55, 0.5, 0.44),), True),
        Layer(colour, (*ears, oval(0, -0.28, 0.58, 0.48)), True),
        Layer(_light(colour), (oval(0, 0.64, 0.26, 0.28), *inner_ears)),
        eyes(0.24, -0.34),
        Layer(DARK, (nose, *pair(whiskers[0]), *pair(whiskers[1]))),
    ]


def rabbit(colour: RGB) -> list[Layer]:
    return [
        Layer(WHITE, (oval(0.48, 0.74, 0.19, 0.19),), True),
        Layer(colour, (oval(0, 0.6, 0.46, 0.4),), True),
        Layer(colour, (*pair(oval(0.23, -0.62, 0.16, 0.46)), oval(0, -0.06, 0.45, 0.4)), True),
        Layer(_light(colour), (*pair(oval(0.23, -0.64, 0.075, 0.33)), oval(0, 0.66, 0.24, 0.26))),
        eyes(0.19, -0.12),
        Layer(DARK, (oval(0, 0.02, 0.07, 0.05),)),
        Layer(WHITE, (box(-0.08, 0.1, 0.08, 0.24),)),
    ]


def bear(colour: RGB) -> list[Layer]:
    belly, muzzle = oval(0, 0.58, 0.36, 0.33), oval(0, -0.14, 0.28, 0.22)
    return [
        Layer(colour, (*pair(oval(0.64, 0.45, 0.18, 0.3)), oval(0, 0.52, 0.62, 0.47)), True),
        Layer(colour, (*pair(oval(0.46, -0.74, 0.23, 0.23)), oval(0, -0.33, 0.6, 0.52)), True),
        Layer(_light(colour), (belly, muzzle, *pair(oval(0.46, -0.74, 0.11, 0.11)))),
        eyes(0.25, -0.44),
        Layer(DARK, (oval(0, -0.22, 0.13, 0.09),)),
    ]


def elephant(colour: RGB) -> list[Layer]:
    trunk = stroke(0.24, (0, -0.2), (0.02, 0.3), (0.1, 0.56), (0.3, 0.62))
    return [
        Layer(colour, (oval(0, 0.5, 0.56, 0.46), *pair(box(0.14, 0.5, 0.5, 0.98))), True),
        Layer(_dark(colour), pair(oval(0.66, -0.36, 0.36, 0.5)), True),
        Layer(_light(colour), pair(oval(0.7, -0.34, 0.2, 0.34))),
        Layer(colour, (oval(0, -0.38, 0.5, 0.52),), True),
        Layer(WHITE, pair(polygon((0.18, 0.02), (0.3, 0.02), (0.26, 0.3)))),
        Layer(colour, (trunk,), True),
        eyes(0.24, -0.46),
    ]


def frog(colour: RGB) -> list[Layer]:
    return [
        Layer(_dark(colour), pair(oval(0.7, 0.76, 0.3, 0.2)), True),
        Layer(colour, (oval(0, 0.46, 0.72, 0.5),), True),
        Layer(colour, (*pair(oval(0.42, -0.36, 0.28, 0.28)), oval(0, -0.02, 0.74, 0.4)), True),
        Layer(_light(colour), (oval(0, 0.64, 0.42, 0.27),)),
        Layer(WHITE, pair(oval(0.42, -0.38, 0.19, 0.19))),
        eyes(0.42, -0.36, 0.1),
        Layer(DARK, (stroke(0.07, (-0.42, 0.06), (-0.2, 0.18), (0.2, 0.18), (0.42, 0.06)),)),
    ]


def turtle(colour: RGB) -> list[Layer]:
    legs = (box(-0.6, 0.5, -0.28, 0.96), box(0.18, 0.5, 0.5, 0.96))
    tail = polygon((-0.7, 0.46), (-1.04, 0.62), (-0.7, 0.64))
    left, right = oval(-0.42, 0.3, 0.17, 0.15), oval(0.3, 0.3, 0.17, 0.15)
    return [
        Layer(_light(colour, 0.55), (oval(0.76, 0.22, 0.29, 0.28), *legs, tail), True),
        Layer(colour, (dome(-0.06, 0.62, 0.8, 1.2),), True),
        Layer(_dark(colour), (left, oval(-0.06, -0.14, 0.2, 0.18), right)),
        Layer(DARK, (oval(0.84, 0.16, 0.075, 0.09), stroke(0.05, (0.8, 0.36), (0.96, 0.33)))),
    ]


def car(colour: RGB) -> list[Layer]:
    cabin = polygon((-0.64, 0.2), (-0.42, -0.34), (0.37, -0.34), (0.64, 0.2))
    left_window = polygon((-0.44, 0.12), (-0.3, -0.2), (-0.04, -0.2), (-0.04, 0.12))
    right_window = polygon((0.08, 0.12), (0.08, -0.2), (0.28, -0.2), (0.44, 0.12))
    return [
        Layer(colour, (cabin, box(-1, 0.1, 1, 0.64)), True),
        Layer(GLASS, (left_window, right_window)),
        Layer(DARK, pair(oval(0.55, 0.68, 0.27, 0.27))),
        Layer(GREY, pair(oval(0.55, 0.68, 0.11, 0.11))),
    ]


def house(colour: RGB) -> list[Layer]:
    return [
        Layer(CREAM, (box(-0.72, -0.1, 0.72, 0.94),), True),
        Layer(colour, (polygon((-1, -0.04), (0, -0.98), (1, -0.04)),), True),
        Layer(colour, (box(-0.17, 0.34, 0.2, 0.94),)),
        Layer(GLASS, (box(-0.56, 0.12, -0.26, 0.42), box(0.32, 0.12, 0.6, 0.42))),
    ]


def tree(colour: RGB) -> list[Layer]:
    return [
        Layer(WOOD, (polygon((-0.14, 0.1), (0.14, 0.1), (0.19, 0.97), (-0.19, 0.97)),), True),
        Layer(colour, (*pair(oval(0.4, -0.06, 0.46, 0.42)), oval(0, -0.48, 0.54, 0.48)), True),
        Layer(_dark(colour), (oval(0.34, 0.1, 0.22, 0.15), oval(-0.18, -0.5, 0.15, 0.11))),
    ]


def balloon(colour: RGB) -> list[Layer]:
    knot = polygon((0, 0.1), (-0.12, 0.28), (0.12, 0.28))
    return [
        Layer(DARK, (stroke(0.05, (0, 0.1), (0.07, 0.45), (-0.05, 0.95)),)),
        Layer(colour, (oval(0, -0.42, 0.54, 0.6), knot), True),
        Layer(_light(colour), (oval(-0.2, -0.64, 0.12, 0.17),)),
    ]


def umbrella(colour: RGB) -> list[Layer]:
    return [
        Layer(WOOD, (stroke(0.1, (0, -0.3), (0, 0.86), (0.14, 0.94), (0.26, 0.84)),)),
        Layer(colour, (dome(0, 0.14, 0.96, 1.04),), True),
        Layer(_light(colour), (polygon((-0.3, 0.14), (0, -0.86), (0.3, 0.14)),)),
    ]


def mushroom(colour: RGB) -> list[Layer]:
    left, right = oval(-0.42, 0.02, 0.15, 0.13), oval(0.48, 0.04, 0.13, 0.12)
    return [
        Layer(CREAM, (polygon((-0.25, 0.1), (0.25, 0.1), (0.34, 0.95), (-0.34, 0.95)),), True),
        Layer(colour, (dome(0, 0.24, 0.9, 0.98),), True),
        Layer(WHITE, (left, oval(0.06, -0.4, 0.18, 0.15), right)),
    ]


def green_hill(rng: Random) -> list[Layer]:
    x, top = rng.uniform(0.35, 0.65), rng.uniform(0.56, 0.62)
    clouds = (oval(x + 0.3, 0.14, 0.13, 0.05), oval(x - 0.3, 0.2, 0.12, 0.045))
    return [
        Layer((150, 212, 248), (box(0, 0, 1, 1),)),
        Layer(WHITE, clouds),
        Layer((120, 198, 88), (oval(x, 1.35, 1.2, 1.35 - top),), True),
    ]


def sandy_beach(rng: Random) -> list[Layer]:
    top = rng.uniform(0.56, 0.62)
    return [
        Layer((176, 228, 250), (box(0, 0, 1, 1),)),
        Layer((40, 150, 205), (box(0, top - 0.14, 1, 1),), True),
        Layer((244, 218, 158), (polygon((0, top), (1, top + 0.03), (1, 1), (0, 1)),), True),
    ]


def snow(rng: Random) -> list[Layer]:
    top = rng.uniform(0.56, 0.62)
    at = [(rng.random(), rng.uniform(0.03, top - 0.05)) for _ in range(12)]
    drifts = (oval(0.2, 1.3, 0.8, 1.3 - top), oval(0.85, 1.3, 0.7, 1.28 - top))
    return [
        Layer((148, 174, 202), (box(0, 0, 1, 1),)),
        Layer((242, 246, 250), drifts, True),
        Layer(WHITE, tuple(oval(x, y, 0.014, 0.014) for x, y in at)),
    ]


def night(rng: Random) -> list[Layer]:
    top, x = rng.uniform(0.56, 0.62), rng.choice((0.18, 0.82)) + rng.uniform(-0.04, 0.04)
    stars = tuple(oval(rng.random(), rng.uniform(0.03, top - 0.1), 0.011, 0.011) for _ in range(9))
    return [
        Layer((28, 32, 82), (box(0, 0, 1, 1),)),
        Layer((250, 245, 210), stars),
        Layer((250, 238, 170), (oval(x, 0.15, 0.09, 0.09),)),
        Layer((36, 68, 66), (box(0, top, 1, 1),), True),
    ]


def sunset(rng: Random) -> list[Layer]:
    top, x = rng.uniform(0.56, 0.62), rng.uniform(0.35, 0.65)
    return [
        Layer((253, 178, 104), (box(0, 0, 1, 1),)),
        Layer((250, 104, 66), (oval(x, top - 0.06, 0.18, 0.18),)),
        Layer((116, 78, 122), (box(0, top, 1, 1),), True),
    ]


ANIMALS = {draw.__name__: draw for draw in (cat, rabbit, bear, elephant, frog, turtle)}
THINGS = {draw.__name__: draw for draw in (car, house, tree, balloon, umbrella, mushroom)}
PLACES = {
    "on a green hill": green_hill,
    "on a sandy beach": sandy_beach,
    "in the snow": snow,
    "at night": night,
    "at sunset": sunset,
}
