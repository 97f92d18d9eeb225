"""Mean and spread over seeds, and two paired tests: over seeds, and over the samples that were asked.

The two answer different questions. Over seeds: would another training say the same? Over samples: would other questions
of the same kind, put to the models that were trained? A difference that holds should pass both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over seeds and its standard deviation (n - 1 below), None of a single one."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Paired:
    """A mean difference, its 95 % interval and two-sided p; `p_holm` is p corrected for the rows that it stands among
    (`holm`), p itself of one alone."""

    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def over_seeds(first: Sequence[float], second: Sequence[float]) -> Paired | None:
    """Paired t test: `second` less `first`, seed by seed; None of fewer than two pairs.

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
    reach = t_quantile((1 + LEVEL) / 2, n - 1) * error
    p = t_tails(mean / error, n - 1)
    return Paired(mean, mean - reach, mean + reach, p, p)


def over_samples(difference: float, draws: Floats) -> Paired | None:
    """Paired bootstrap: `draws` (rounds,) are the difference on samples drawn again, the same ones for both variants.

    p is twice the share of draws on the other side of zero. None where no draw had anything to judge.
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    tail = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
    p = min(1.0, 2 * tail / (1 + len(known)))
    return Paired(difference, low, high, p, p)


def holm(ps: Sequence[float]) -> list[float]:
    """p of a family of tests, each corrected for their number (Holm 1979), in the same order.

    The smallest of n counts n times, the next n - 1 times, and so on; none may come out below one before it. The chance
    that any true tie is below a level is then at most that level, however the tests depend on each other.
    """
    values = np.asarray(ps, np.float64)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    found: list[float] = corrected.tolist()
    return found


def t_tails(t: float, freedom: int) -> float:
    """The chance that Student's t with these degrees of freedom is as far from zero as `t`.

    It is the regularised incomplete beta function at freedom / (freedom + t^2), parameters freedom / 2 and 1 / 2
    (Abramowitz and Stegun 26.7.1).
    """
    square = t * t
    return _beta(freedom / (freedom + square), square / (freedom + square), freedom / 2, 0.5)


def t_quantile(level: float, freedom: int) -> float:
    """The t below which a share `level`, above one half, of Student's distribution lies; by bisection."""
    tails = 2 * (1 - level)
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > tails:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > tails else (low, middle)
    return (low + high) / 2


def _beta(x: float, rest: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Abramowitz and Stegun 26.5.8).

    `rest` is 1 - x, which could not be told from x where that is close to 1.
    """
    if x <= 0 or rest <= 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta(rest, x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 1000):  # Lentz's method; two steps of the fraction at a time
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (_away(1 + step * d, tiny))
            c = _away(1 + step / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def _away(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
