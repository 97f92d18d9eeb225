"""COCO's compressed run lengths as numbers, so that a code that is cut off or damaged is noticed.

pycocotools decodes a code whose runs end early without a word: the pixels beyond are whatever lay in memory.
"""

from __future__ import annotations

import numpy as np

from sail_lightning.errors import SailError

_MOST = 8
"""Characters of one number: five bits each, and no picture has 2**40 pixels."""


def run_lengths(counts: str) -> list[int]:
    """The runs of a compressed RLE, column by column, off first.

    A number is written five bits a character, the lowest first, with a bit that says that more follow, and its sign in
    the last; from the fourth number on it is the difference to the number two places before.

    Raises:
        SailError: not such a code.
    """
    codes = np.frombuffer(counts.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return []
    last = (codes & 32) == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise SailError(f"counts {counts[:20]!r} are no compressed RLE; write them with pycocotools")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST:
        raise SailError(f"counts {counts[:20]!r} are no compressed RLE: a number of {lengths.max()} characters")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    runs: list[int] = values.tolist()
    return runs
