"""Drawn photos with objects whose masks are known, and the encodings in which annotation files write masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (235, 220, 40)}
SIZES = ((48, 64), (64, 48), (40, 40), (33, 50))
"""(height, width) of the photos, in turn."""


@dataclass(frozen=True)
class Thing:
    """An object: its colour, its outline as a polygon, and its mask (H, W) bool, which pycocotools makes of that."""

    colour: str
    polygon: tuple[float, ...]
    mask: np.ndarray

    @property
    def polygons(self) -> list[list[float]]:
        return [list(self.polygon)]

    @property
    def box(self) -> list[float]:
        """[x, y, width, height]."""
        return [float(number) for number in coco.toBbox(_compressed(self.mask))]

    def rle(self) -> dict[str, Any]:
        """Compressed, as JSON holds it."""
        encoded = _compressed(self.mask)
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}

    def uncompressed(self) -> dict[str, Any]:
        flat = self.mask.ravel(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *edges, len(flat)]).tolist()
        return {"size": list(self.mask.shape), "counts": counts if not flat[0] else [0, *counts]}


@dataclass(frozen=True)
class Photo:
    """A drawn photo with its objects; no two of one photo have the same colour."""

    number: int
    size: tuple[int, int]
    things: tuple[Thing, ...]

    def save(self, path: Path) -> Path:
        """Writes the image as a JPEG or PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", self.size[::-1], (90, 90, 90))
        draw = ImageDraw.Draw(picture)
        for thing in self.things:
            points = list(zip(thing.polygon[::2], thing.polygon[1::2], strict=True))
            draw.polygon(points, fill=COLOURS[thing.colour])
        picture.save(path)
        return path

    def segment_map(self) -> np.ndarray:
        """(H, W) int64: the number of the object from 1 on that owns a pixel, later ones first; 0 for none."""
        owners = np.zeros(self.size, np.int64)
        for number, thing in enumerate(self.things, 1):
            owners[thing.mask] = number
        return owners


def photo(number: int, things: int = 3) -> Photo:
    """A photo with objects in different places, the same for a number each time."""
    rng = np.random.default_rng([7, number])
    size = SIZES[number % len(SIZES)]
    made = []
    for colour in rng.permutation(list(COLOURS))[:things]:
        height, width = (int(rng.integers(side // 4, side // 2)) for side in size)
        top, left = int(rng.integers(0, size[0] - height)), int(rng.integers(0, size[1] - width))
        box = (left, top, left + width, top, left + width, top + height, left, top + height)
        triangle = (left, top, left + width, top + height / 2, left, top + height)
        outline = tuple(float(n) for n in (box if rng.random() < 0.5 else triangle))
        mask = np.asarray(coco.decode(coco.merge(coco.frPyObjects([list(outline)], *size))), bool)
        made.append(Thing(str(colour), outline, mask))
    return Photo(number, size, tuple(made))


def dump(path: Path, content: Any) -> Path:
    """Writes JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def rgb_of(ids: np.ndarray) -> Image.Image:
    """A panoptic PNG: R + 256 G + 65536 B is the id of a pixel's segment."""
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


def _compressed(mask: np.ndarray) -> dict[str, Any]:
    encoded: dict[str, Any] = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return encoded
