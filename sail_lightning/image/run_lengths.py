"""COCO's compressed run lengths: masks to codes, and codes to numbers, so that a truncated or damaged one is noticed.

pycocotools silently decodes a code with too few runs: the remaining pixels are uninitialised memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sail_lightning.errors import SailError
from sail_lightning.sample import BoolMask

_MOST = 8
"""Largest number of characters of one number: each has five bits, and no image has 2**40 pixels."""


def encode_rle(mask: BoolMask) -> dict[str, Any]:
    """A mask (H, W) as a COCO compressed RLE: `size` [H, W] and `counts`, a string."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def run_lengths(counts: str) -> list[int]:
    """The run lengths of a compressed RLE, column by column, beginning with a run of pixels that are off.

    Each character holds five bits of a number, lowest first, and a bit that is set if more characters follow; the last
    one holds the sign. From the fourth number on, a number is the difference from the number two before it.

    Raises:
        SailError: The text is not a compressed RLE.
    """
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return []
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise SailError(f"counts {counts[:20]!r} are not a compressed RLE; write them with pycocotools")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST:
        raise SailError(f"counts {counts[:20]!r} are not a compressed RLE: a number has {lengths.max()} characters")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    runs: list[int] = values.tolist()
    return runs
