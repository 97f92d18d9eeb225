"""Draws the laboratory's scenes: a few coloured shapes on a dark ground, with the exact visible mask of each.

Every attribute can be read from the pixels: six colours far apart, four shapes, two sizes with a gap between them,
three textures. Four pairs of colour and shape are held out of training, so that a test can ask for what was never seen
together although each part was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sail_lightning.sample import BoolMask

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 40, 36),
    "green": (40, 178, 62),
    "blue": (44, 96, 236),
    "yellow": (238, 208, 36),
    "purple": (166, 58, 206),
    "white": (238, 238, 238),
}
SIZES: dict[str, tuple[float, float]] = {"small": (6.0, 8.0), "large": (11.0, 14.0)}
"""Smallest and largest radius in pixels of each size, in an image of 64 pixels with up to six objects."""
TEXTURES = ("plain", "striped", "dotted")

Pair = tuple[str, str]
"""A colour and a shape."""
HELD_OUT: tuple[Pair, ...] = (("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square"))
"""Pairs that only the compositional split contains."""
ALL_PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT)

HIDES_AT_MOST = 0.25
"""Largest share of an object's area that one other object may hide."""
VISIBLE_AT_LEAST = 0.70
"""Smallest share of an object's area that all others together must leave visible."""
COLOUR_JITTER = 12
"""Largest change of each channel of an object's colour, in either direction, out of 255."""
TEXTURE_SHADE = 0.42
"""Brightness of stripes and dots relative to the object's colour; white stays brighter than any ground."""
FEWEST_PIXELS = 6
"""Smallest number of visible pixels of an object; a smaller one would show no shape."""
PLACES_TRIED = 24
SCENES_TRIED = 60


@dataclass(frozen=True, eq=False)
class SceneObject:
    """A shape. `mask` (H, W) bool holds its visible pixels only; `centre` is their mean (x, y) in pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    mask: BoolMask
    centre: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """An image (H, W, 3) uint8, RGB, and its objects, from the bottom to the top."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def draw_scene(
    rng: np.random.Generator,
    *,
    size: int = 64,
    min_objects: int = 2,
    max_objects: int = 5,
    pairs: Sequence[Pair] = ALL_PAIRS,
    required: Sequence[Pair] = (),
) -> Scene:
    """Draws a square scene of `size` pixels with `min_objects` to `max_objects` objects.

    Radii grow with `size`, and shrink if `max_objects` exceeds six, so that the objects fit. Colours and shapes
    are drawn from `pairs`; where `required` is given, at least one object is drawn from it.

    Raises:
        ValueError: No arrangement of that many objects was found.
    """
    for _ in range(SCENES_TRIED):
        count = int(rng.integers(min_objects, max_objects + 1))
        scale = size / 64 * min(1.0, (6 / max_objects) ** 0.5)
        canvas = _Canvas(rng, size, scale)
        special = int(rng.integers(count)) if required else -1
        placed = True
        for position in range(count):
            fits = canvas.place(required if position == special else pairs)
            placed = placed and (fits or position != special)
        if placed and len(canvas.drawn) >= min_objects:
            return canvas.scene()
    raise ValueError(f"{min_objects} objects do not fit in {size} x {size} pixels; lower min_objects or raise size")


class _Canvas:
    """A scene that is being drawn: its pixels, and the object that owns each of them."""

    def __init__(self, rng: np.random.Generator, size: int, scale: float) -> None:
        self.rng, self.size, self.scale = rng, size, scale
        self.image = _ground(rng, size)
        self.owner = np.zeros((size, size), np.int64)  # 0 is the ground, k the k-th object
        self.drawn: list[tuple[str, str, str, str]] = []
        self.area: list[int] = [0]
        self.visible: list[int] = [0]

    def place(self, pairs: Sequence[Pair]) -> bool:
        """Draws one object on top, small if a large one does not fit; returns False if neither fits."""
        rng = self.rng
        colour, shape = pairs[int(rng.integers(len(pairs)))]
        names = tuple(SIZES)[int(rng.integers(len(SIZES))) :: -1]
        for name in names:
            low, high = SIZES[name]
            for _ in range(PLACES_TRIED):
                radius = float(rng.uniform(low, high)) * self.scale
                x, y = (float(v) for v in rng.uniform(radius, self.size - radius, 2))
                rows = slice(int(y - radius), min(self.size, int(np.ceil(y + radius))))
                columns = slice(int(x - radius), min(self.size, int(np.ceil(x + radius))))
                dy = np.arange(rows.start, rows.stop, dtype=np.float64)[:, None] + (0.5 - y)
                dx = np.arange(columns.start, columns.stop, dtype=np.float64)[None] + (0.5 - x)
                inside = _inside(shape, dx, dy, radius)
                hidden = np.bincount(self.owner[rows, columns][inside], minlength=len(self.area)).tolist()
                free = sum(hidden) >= FEWEST_PIXELS and self._may_hide(hidden)
                if free and not self._touches(colour, shape, x, y, radius):
                    texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
                    self._paint(rows, columns, inside, colour, texture)
                    self._own(rows, columns, inside, hidden)
                    self.drawn.append((shape, colour, name, texture))
                    return True
        return False

    def _may_hide(self, hidden: list[int]) -> bool:
        return all(
            lost <= HIDES_AT_MOST * area and left - lost >= VISIBLE_AT_LEAST * area
            for lost, area, left in zip(hidden[1:], self.area[1:], self.visible[1:], strict=True)
        )

    def _touches(self, colour: str, shape: str, x: float, y: float, radius: float) -> bool:
        """Returns whether the new object would look like one blob with another of its colour."""
        alike = [index for index, drawn in enumerate(self.drawn, start=1) if drawn[1] == colour]
        if not alike:
            return False
        wide = radius + 1.5 + self.size / 64
        rows = slice(max(0, int(y - wide)), int(y + wide) + 1)
        columns = slice(max(0, int(x - wide)), int(x + wide) + 1)
        near = self.owner[rows, columns]
        dy = np.arange(rows.start, rows.start + near.shape[0], dtype=np.float64)[:, None] + (0.5 - y)
        dx = np.arange(columns.start, columns.start + near.shape[1], dtype=np.float64)[None] + (0.5 - x)
        found = np.bincount(near[_inside(shape, dx, dy, wide)], minlength=len(self.area))
        return any(found[index] for index in alike)

    def _own(self, rows: slice, columns: slice, inside: BoolMask, hidden: list[int]) -> None:
        self.owner[rows, columns][inside] = len(self.area)
        self.visible = [left - lost for left, lost in zip(self.visible, hidden, strict=True)]
        area = int(inside.sum())
        self.area.append(area)
        self.visible.append(area)

    def _paint(self, rows: slice, columns: slice, inside: BoolMask, colour: str, texture: str) -> None:
        rng = self.rng
        tone = np.asarray(COLOURS[colour]) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
        tone = np.clip(tone, 0, 255)
        window = self.image[rows, columns]
        window[inside] = tone
        if texture != "plain":
            dark = _texture(texture, inside.shape, max(1, round(self.size / 32)), rng)
            window[inside & dark] = (tone * TEXTURE_SHADE).astype(np.uint8)

    def scene(self) -> Scene:
        objects = []
        for index, (shape, colour, size, texture) in enumerate(self.drawn, start=1):
            mask = self.owner == index
            ys, xs = np.divmod(np.flatnonzero(mask), self.size)
            centre = (float(xs.mean()) + 0.5, float(ys.mean()) + 0.5)
            objects.append(SceneObject(shape, colour, size, texture, mask, centre))
        return Scene(self.image, tuple(objects))


def _ground(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Returns a dark ground, grey to brownish, in slow waves with a fine grain; no channel exceeds 96."""
    level = rng.uniform(18, 62)
    tint = np.array([1.0, rng.uniform(0.85, 1.0), rng.uniform(0.7, 1.0)])
    waves = rng.uniform(-14, 14, (5, 5, 1))
    coarse = np.clip((level + waves) * tint, 0, 80).astype(np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    grain = rng.integers(0, 8, (size, size, 1), np.uint8)
    result: NDArray[np.uint8] = np.minimum(ground, 88) + grain
    return result


def _inside(shape: str, dx: NDArray[np.float64], dy: NDArray[np.float64], radius: float) -> BoolMask:
    """Returns the pixels of a shape as (h, w) bool; dx (1, w) and dy (h, 1) are offsets from its centre."""
    if shape == "circle":
        return dx * dx + dy * dy <= (0.97 * radius) ** 2
    if shape == "square":
        side = 0.86 * radius
        return (np.abs(dx) <= side) & (np.abs(dy) <= side)
    if shape == "triangle":
        return 2 * np.abs(dx) <= dy + radius
    arm = 0.36 * radius
    x, y = np.abs(dx), np.abs(dy)
    return ((x <= arm) & (y <= radius)) | ((y <= arm) & (x <= radius))


def _texture(texture: str, shape: tuple[int, ...], width: int, rng: np.random.Generator) -> BoolMask:
    """Returns the dark pixels of a region (h, w): stripes of `width` pixels at one of four angles, or dots."""
    y = np.arange(shape[0])[:, None] + int(rng.integers(4 * width))
    x = np.arange(shape[1])[None] + int(rng.integers(4 * width))
    if texture == "striped":
        angle = int(rng.integers(4))
        along = (x + 0 * y, y + 0 * x, x + y, x - y)[angle]
        period = 2 * width if angle < 2 else 3 * width  # a diagonal period is shorter by the root of two
        return along % period < period / 2
    period = 2 * width
    row = y // period
    return ((x + row * width) % period < width) & (y % period < width)
