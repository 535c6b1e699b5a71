"""Paint a scene in one of two styles, flat or watercolour.

The watercolour simulates pigment on paper grain, uneven washes with bleeding edges and dark rims, paint lifted by later
layers, and an ink line on top (after Curtis et al. 1997, Computer-Generated Watercolor, much simplified).
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImagePath

from helpers.demo.scenes import Scene, layers
from helpers.demo.shapes import DARK, RGB, Layer, Shape

SIZE_PX = 128
PAPER = np.array((0.975, 0.955, 0.905), np.float32)
INK = np.array((0.17, 0.14, 0.17), np.float32)


def paint_flat(scene: Scene, size_px: int = SIZE_PX) -> Image.Image:
    """Paint the scene in plain, even colours."""
    canvas_px = size_px * 4
    image = Image.new("RGB", (canvas_px, canvas_px))
    for layer in layers(scene):
        _draw(image, layer.shapes, layer.colour)
    return image.resize((size_px, size_px), Image.Resampling.BOX)


def paint_watercolour(scene: Scene, size_px: int = SIZE_PX) -> Image.Image:
    """Paint the scene as a watercolour with an ink line and a paper margin."""
    sheet = _Sheet(scene.seed, size_px)
    sky, *rest = layers(scene)
    ground = max(i for i, layer in enumerate(rest) if _is_wide(layer))
    sheet.glaze(sheet.patch * sheet.fade, sky.colour)
    for i, layer in enumerate(rest):
        coverage = sheet.coverage(layer.shapes)
        if i <= ground:
            coverage *= sheet.patch
        sheet.paint(coverage, layer, outline=layer.inked and i > ground)
    return sheet.finish()


def _is_wide(layer: Layer) -> bool:
    xs = [x for shape in layer.shapes for x, _ in shape.points]
    return max(xs) - min(xs) > 0.95 and layer.inked


def _draw(image: Image.Image, shapes: tuple[Shape, ...], fill: RGB | int) -> None:
    draw, n = ImageDraw.Draw(image), image.width
    for shape in shapes:
        points = [(x * n, y * n) for x, y in shape.points]
        match shape.kind:
            case "oval":
                draw.ellipse(ImagePath.Path(points).getbbox(), fill)
            case "dome":
                draw.pieslice(ImagePath.Path(points).getbbox(), 180, 360, fill)
            case "polygon":
                draw.polygon(points, fill)
            case "stroke":
                draw.line(points, fill, max(1, round(shape.width * n)), joint="curve")
                for x, y in points:
                    draw.circle((x, y), shape.width * n / 2, fill)


def _blur(field: np.ndarray, radius_px: float) -> np.ndarray:
    image = Image.fromarray((np.clip(field, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius_px)), np.float32) / 255


class _Sheet:
    """A sheet of watercolour paper at 1.5 times the final size. Masks are (n, n) float32 from 0 to 1."""

    def __init__(self, seed: int, size_px: int) -> None:
        self.size_px, self.n = size_px, size_px * 3 // 2
        self.unit = self.n / 128  # lengths below were chosen on a sheet of 128
        self.rng = np.random.default_rng((seed, 7))
        grain = _blur(self.rng.random((self.n, self.n)), 0.8 * self.unit)
        self.grain = (grain - grain.mean()) / grain.std()
        self.colour = PAPER * (1 + 0.022 * self.grain[..., None])  # (n, n, 3)
        self.paper = self.colour.copy()
        self.ink = np.zeros((self.n, self.n), np.float32)
        self.wobble = self._wobble()
        self.patch = self._patch()
        self.fade = np.linspace(1.1, 0.6, self.n, dtype=np.float32)[:, None]

    def _noise(self, cells: int) -> np.ndarray:
        """Return smooth noise (n, n) from 0 to 1, interpolated from `cells` x `cells` random values."""
        values = Image.fromarray((self.rng.random((cells, cells)) * 255).astype(np.uint8))
        smooth = values.resize((self.n, self.n), Image.Resampling.BICUBIC)
        return np.asarray(smooth, np.float32) / 255

    def _wobble(self) -> tuple[np.ndarray, ...]:
        """Return index arrays (rows, columns) that shift each pixel by a smooth random offset."""
        places = np.mgrid[0 : self.n, 0 : self.n].astype(np.float32)
        for axis in places:
            axis += (self._noise(14) - 0.5) * 2 * (2.2 * self.unit)
        return tuple(np.clip(places, 0, self.n - 1).astype(int))

    def _patch(self) -> np.ndarray:
        """Return a mask of the painted area of the paper, inside an irregular margin."""
        margin = 0.035 + 0.05 * self._noise(7)
        y, x = np.mgrid[0 : self.n, 0 : self.n] / self.n
        across = (x > margin) & (x < 1 - margin[::-1])
        return (across & (y > margin.T) & (y < 1 - margin.T[:, ::-1])).astype(np.float32)

    def coverage(self, shapes: tuple[Shape, ...]) -> np.ndarray:
        mask = Image.new("L", (self.n, self.n), 0)
        _draw(mask, shapes, 255)
        return np.asarray(mask, np.float32)[self.wobble] / 255

    def glaze(self, coverage: np.ndarray, colour: RGB) -> None:
        """Paint a transparent wash over `coverage`: uneven, denser in the paper's grain and at the rim."""
        soft = _blur(coverage, 1.0 * self.unit)
        rim = np.clip(soft - _blur(coverage, 3.2 * self.unit), 0, 1) * soft
        flow = 0.42 * (self._noise(5) - 0.5) + 0.22 * (self._noise(11) - 0.5)
        density = np.clip(soft * (0.78 + flow + 0.05 * self.grain + 0.9 * rim), 0, 1)[..., None]
        self.colour = self.colour * (1 - density * (1 - _pigment(colour)))

    def paint(self, coverage: np.ndarray, layer: Layer, *, outline: bool) -> None:
        """Paint a layer over `coverage`: lift most paint below, then add a wash, or ink if the layer is DARK."""
        soft = _blur(coverage, 1.0 * self.unit)[..., None]
        self.colour = self.colour * (1 - 0.93 * soft) + self.paper * 0.93 * soft
        self.ink *= 1 - 0.95 * _blur(coverage, 0.5 * self.unit)  # hides the lines behind
        if layer.colour == DARK:
            self.ink = np.maximum(self.ink, 0.92 * _blur(coverage, 0.4 * self.unit))
            return
        self.glaze(coverage, layer.colour)
        if outline:
            self.ink = np.maximum(self.ink, self._line(coverage))

    def _line(self, coverage: np.ndarray) -> np.ndarray:
        """Return a mask of an ink line along the edge of `coverage`, with gaps."""
        edge = _blur(coverage, 0.8 * self.unit)
        edge = 4 * edge * (1 - edge) - 0.3
        return np.clip(edge * 1.6, 0, 1) * (0.5 + 0.6 * self._noise(self.n // 4))

    def finish(self) -> Image.Image:
        ink = 0.9 * np.clip(self.ink, 0, 1)[..., None]
        pixels = np.clip(self.colour * (1 - ink) + INK * ink, 0, 1) * 255
        image = Image.fromarray(pixels.astype(np.uint8))
        return image.resize((self.size_px, self.size_px), Image.Resampling.BOX)


def _pigment(colour: RGB) -> np.ndarray:
    """Return the shares of red, green and blue light that a wash of `colour` lets through, from 0 to 1."""
    rgb = np.array(colour, np.float32) / 255
    grey = rgb.mean()
    return np.clip(grey + (rgb - grey) * 0.86, 0, 1) * 0.9 + 0.08
