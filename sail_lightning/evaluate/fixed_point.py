"""Scores as whole numbers, and quotients of their sums.

Whole numbers add up to the same total in any order, so a result is identical, bit for bit, under any batch size and
number of ranks. They also survive what Lightning does to floating-point states: `precision: bf16-true` casts those to
bfloat16, and MPS has no float64.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIXED_POINT_ONE = 1 << 40
"""What a score of 1 adds to a sum of scores: resolution 1e-12, room for eight million scores in an int64."""


def to_fixed_point(score: float | Fraction) -> int:
    """A score in [0, 1] as a whole number of 1/`FIXED_POINT_ONE`."""
    return round(Fraction(score) * FIXED_POINT_ONE)


def ratio(part: Any, whole: Any, empty: Any = float("nan")) -> Any:
    """part / whole, or `empty` where whole is zero.

    For whole numbers this is a float, correctly rounded; for arrays it is an array, float64: the same metric of many
    sets of answers at once.
    """
    if isinstance(whole, np.ndarray):
        return np.where(whole == 0, empty, part / np.where(whole == 0, 1, whole))
    return part / whole if whole else empty


def mean(units: Any, count: Any) -> Any:
    """The mean of `count` scores that add up to `units`; NaN where there are none. Numbers or arrays, as `ratio`."""
    return ratio(units, count * FIXED_POINT_ONE)


def scalar(value: float | int) -> Tensor:
    """A result: float64 (int64 for a count), no dimensions, on the CPU, where every device's results can be."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
