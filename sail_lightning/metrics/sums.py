"""Named whole-number sums: the only state that the metrics of this package keep.

Whole numbers add up to the same total in any order, so a result is identical, bit for bit, under any batch size and
number of ranks. They also survive what Lightning does to floating-point states: `precision: bf16-true` casts those to
bfloat16, and MPS has no float64.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

UNIT = 1 << 40
"""What a score of 1 adds to a sum of scores: resolution 1e-12, room for eight million scores in an int64."""


def to_units(score: float | Fraction) -> int:
    """A score in [0, 1] as a whole number of 1/`UNIT`."""
    return round(Fraction(score) * UNIT)


def ratio(part: Any, whole: Any, empty: Any = float("nan")) -> Any:
    """part / whole, or `empty` where whole is zero.

    Of whole numbers a float, correctly rounded; of arrays an array, float64: the same figure of many samples at once.
    """
    if isinstance(whole, np.ndarray):
        return np.where(whole == 0, empty, part / np.where(whole == 0, 1, whole))
    return part / whole if whole else empty


def mean(units: Any, count: Any) -> Any:
    """The mean of `count` scores that add up to `units`; NaN where there are none. Numbers or arrays, as `ratio`."""
    return ratio(units, count * UNIT)


def scalar(value: float | int) -> Tensor:
    """A result: float64 (int64 for a count), no dimensions, on the CPU, where every device's results can be."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


class Sums(Metric):
    """Base of metrics: one int64 vector `sums` with an entry for each of `fields`, added up over ranks.

    Nothing is cached: a rank that saw no new sample would otherwise skip the collective that the others wait in.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    fields: ClassVar[tuple[str, ...]]
    sums: Tensor

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)
        self.add_state("sums", torch.zeros(len(self.fields), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, **amounts: int) -> None:
        """Adds to the named fields."""
        row = [amounts.pop(field, 0) for field in self.fields]
        if amounts:
            raise KeyError(f"{type(self).__name__} has no field {', '.join(amounts)}")
        # Not in place: a state made in inference mode (Lightning's validation) may be added to outside it.
        self.sums = self.sums + torch.tensor(row, dtype=torch.int64, device=self.sums.device)

    def totals(self) -> dict[str, int]:
        """The sums by name."""
        return dict(zip(self.fields, self.sums.tolist(), strict=True))
