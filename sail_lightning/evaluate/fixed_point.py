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

from sail_lightning.settings.renames import renamed

FIXED_POINT_ONE = 1 << 40
"""The integer that stands for a score of 1: a resolution of 1e-12, and eight million scores fit into an int64."""


def to_fixed_point(score: float | Fraction) -> int:
    """Returns a score in [0, 1] as a whole number of units of 1/`FIXED_POINT_ONE`."""
    return round(Fraction(score) * FIXED_POINT_ONE)


def ratio(part: Any, whole: Any, empty: Any = float("nan")) -> Any:
    """Returns part / whole, or `empty` where whole is zero.

    Of whole numbers the result is a float, correctly rounded; of arrays it is a float64 array: the same metric of many
    sets of answers at once.
    """
    if isinstance(whole, np.ndarray):
        return np.where(whole == 0, empty, part / np.where(whole == 0, 1, whole))
    return part / whole if whole else empty


def mean(units: Any, count: Any) -> Any:
    """Returns the mean of `count` scores that add up to `units`, NaN where there are none; numbers or arrays, as in
    `ratio`."""
    return ratio(units, count * FIXED_POINT_ONE)


def scalar(value: float | int) -> Tensor:
    """Returns a result as a tensor without dimensions, float64 (int64 for a count), on the CPU: MPS has no float64."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


__getattr__ = renamed(__name__, {"to_units": "to_fixed_point"})
