"""Masks in the formats of annotation files, decoded on demand: one binary union, never a sum.

Official defect E3: overlapping polygons and instances were added, so that targets of 2 trained the model. E16: masks
with values other than 0 and 1 were run-length encoded, which inverts the pixels after them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from sail_lightning.errors import SailError
from sail_lightning.image.run_lengths import run_lengths
from sail_lightning.sample import BoolMask

MOST_PIXELS = 2**28
"""Largest number of pixels of an image; a larger one is a mistake, and would fill the memory."""
Encoded = list[list[float]] | dict[str, Any]
"""COCO's `segmentation`: polygons `[[x0, y0, x1, y1, ...], ...]`, or an RLE with `counts` as text or as a list."""


@dataclass(frozen=True)
class Segmentation:
    """The union of encoded masks on an image of `size` (height, width); a union of none is an empty mask.

    Calling it returns the mask (H, W) bool, or raises SailError if a part cannot be decoded or has another size.
    """

    parts: tuple[Encoded, ...]
    size: tuple[int, int]

    def __call__(self) -> BoolMask:
        known = len(self.size) == 2 and all(isinstance(side, int) and side > 0 for side in self.size)
        if not known or math.prod(self.size) > MOST_PIXELS:
            raise SailError(f"the image's size is {self.size}, not a height and a width in pixels")
        mask = np.zeros(self.size, bool)
        for part in self.parts:
            mask |= decode(part, self.size)
        return mask


@dataclass(frozen=True)
class PanopticSegments:
    """The union of some segments of a panoptic PNG, in which the segment id of a pixel is R + 256 G + 65536 B."""

    path: str
    ids: tuple[int, ...]

    def __call__(self) -> BoolMask:
        mask: BoolMask = np.isin(_segment_ids(self.path), self.ids)
        return mask


def decode(encoded: Encoded, size: tuple[int, int]) -> BoolMask:
    """A mask (H, W) bool from COCO's polygons or from an RLE, compressed or not.

    Raises:
        SailError: The mask cannot be decoded, or has another size than (height, width).
    """
    if isinstance(encoded, dict):
        own = encoded.get("size")
        if not isinstance(own, list | tuple) or tuple(own) != size:
            raise SailError(f"an RLE of size {own}, but the image has {list(size)} (height, width)")
        return decode_rle(encoded)
    if not isinstance(encoded, list) or not all(isinstance(polygon, list) for polygon in encoded):
        raise SailError(f"a mask must be polygons or an RLE, not {str(encoded)[:40]}")
    for polygon in encoded:
        if len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
            raise SailError(f"a polygon needs three or more points x, y, not the {len(polygon)} numbers it has")
    if not encoded:
        return np.zeros(size, bool)
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(encoded, *size))), bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def decode_rle(rle: dict[str, Any]) -> BoolMask:
    """A mask (H, W) bool from an RLE with a `size`, and `counts` as text, bytes or a list.

    The sum of the counts is checked, since pycocotools accepts a truncated code (see `run_lengths`).

    Raises:
        SailError: The RLE has no size, or its counts do not fit that size.
    """
    try:
        counts = rle["counts"]
        height, width = (int(side) for side in rle["size"])
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        lengths = run_lengths(counts) if isinstance(counts, str) else [int(count) for count in counts]
    except (KeyError, TypeError, ValueError) as error:
        raise SailError(f"an RLE cannot be decoded ({error}); it needs size [height, width] and counts") from None
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise SailError(f"an RLE of {height} x {width} pixels; it needs size [height, width]")
    if sum(lengths) != height * width or min(lengths, default=0) < 0:
        raise SailError(f"an RLE with counts that add up to {sum(lengths)}, not to {height} x {width} pixels")
    if not isinstance(counts, str):
        counts = coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)["counts"]
    return np.asarray(coco.decode({"size": [height, width], "counts": counts}), bool)


@lru_cache(maxsize=4)
def _segment_ids(path: str) -> NDArray[np.int64]:
    """Segment ids (H, W) int64, cached for other segments of the same image; the result must not be written to."""
    try:
        with Image.open(Path(path)) as opened:
            pixels = np.asarray(opened.convert("RGB"), np.int64)
    except FileNotFoundError:
        raise SailError(f"no panoptic file {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SailError(f"{path} is not a readable panoptic file ({error}); replace or remove it") from None
    return pixels @ np.array([1, 256, 65536])
