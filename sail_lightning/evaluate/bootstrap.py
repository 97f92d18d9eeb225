"""Confidence intervals of metrics by the bootstrap over answers: how much a value depends on the questions asked.

Answers are drawn with repetition, as many as there are, and the value is computed again; the middle 95 % of a thousand
such values is the interval. It says how much another set of questions of the same kind could change the value, not how
much another training could.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from sail_lightning.evaluate.metric import Floats

_CELLS = 1 << 22
"""Number of float64 values in a block of draws (32 MiB)."""


class Resampled(Protocol):
    """Values of a benchmark that can be computed for any draws of its answers."""

    def resampled(self, drawn: Floats) -> Mapping[str, Floats]:
        """Returns the values (rounds,) of draws (rounds, answers), by name, as `MetricResult.resampled` does."""
        ...


def draws(answers: int, rounds: int, seed: int, name: str = "") -> Iterator[Floats]:
    """Yields blocks (some rounds, answers) float64 that say how often each answer was drawn, `rounds` rows in all.

    The same seed and benchmark `name` draw the same; benchmarks of other names draw independently.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    step = max(1, _CELLS // max(1, answers))
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        yield rng.multinomial(answers, np.full(answers, 1 / answers), size).astype(np.float64)


def replicates(judged: Sequence[Resampled], answers: int, rounds: int, seed: int, name: str = "") -> dict[str, Floats]:
    """Returns every value of each draw: float64 arrays (rounds,) by name, NaN where a draw had nothing to judge."""
    if not answers or not rounds:
        return {}
    found: dict[str, list[Floats]] = {}
    for drawn in draws(answers, rounds, seed, name):
        for one in judged:
            for key, values in one.resampled(drawn).items():
                found.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in found.items()}


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Returns the bounds of the middle share `level` of the values, or None where no draw had anything to judge."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(values: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval (low, high) of each metric that has one."""
    found = {name: interval(drawn) for name, drawn in values.items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}
