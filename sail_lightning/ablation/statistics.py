"""Mean and spread over seeds, and two paired tests: over seeds, and over the samples that were asked.

The two tests answer different questions. Over seeds: would another training give the same difference? Over samples:
would other questions of the same kind, asked of the same models? A difference that holds should pass both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The mean of a metric over seeds and its standard deviation (divided by n - 1); None for a single value."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Paired:
    """A mean difference, its 95 % interval and two-sided p; `p_holm` is p corrected for the number of rows of
    its table (`holm`), which is p itself for a single row."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def spread(values: Sequence[float]) -> Spread:
    """The mean and standard deviation of one value or more."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Paired | None:
    """Paired t test: `second` less `first`, seed by seed; None for fewer than two pairs.

    With n differences of mean m and standard deviation s, t = m / (s / sqrt(n)) has n - 1 degrees of freedom.
    Differences that are all the same have no spread: p is then 0, or 1 where they are zero.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    n = len(differences)
    if n < 2:
        return None
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(n)
    if error <= 1e-12 * max(abs(mean), 1e-300):
        p = 1.0 if mean == 0 else 0.0
        return Paired(mean, mean, mean, p, p)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Paired(mean, mean - reach, mean + reach, p, p)


def over_samples(difference: float, draws: Floats) -> Paired | None:
    """Paired bootstrap: `draws` (rounds,) are the difference on samples drawn again, the same ones for both variants.

    p is twice the share of draws on the other side of zero. None where no draw has a value.
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    tail = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
    p = min(1.0, 2 * tail / (1 + len(known)))
    return Paired(difference, low, high, p, p)


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of a family of tests, each corrected for their number (Holm 1979), in the same order.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none may become smaller than one before it. The
    chance that any test without a true difference falls below a level is then at most that level, however the tests
    depend on each other.
    """
    values = np.asarray(ps, np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    found: list[float] = corrected.tolist()
    return found
