"""Decodes COCO's compressed run lengths to numbers, so that a truncated or damaged code is noticed.

pycocotools silently decodes a code with too few runs: the remaining pixels are uninitialised memory.
"""

from __future__ import annotations

import numpy as np

from sail_lightning.errors import SailError

_MOST = 8
"""Largest number of characters of one number: each has five bits, and no image has 2**40 pixels."""


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
