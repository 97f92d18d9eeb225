"""How far a value could be off by chance in what was asked: the bootstrap over answers.

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
"""Numbers of a block of draws: 32 MB."""


class Resampled(Protocol):
    """Some values of a benchmark, of any draws of its answers."""

    def resampled(self, drawn: Floats) -> Mapping[str, Floats]:
        """As `MetricResult.resampled`."""
        ...


def draws(answers: int, rounds: int, seed: int, name: str = "") -> Iterator[Floats]:
    """Blocks (some rounds, answers) that say how often each answer was drawn; `rounds` rows in all.

    The same seed and benchmark `name` draw the same; benchmarks of other names draw independently.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    step = max(1, _CELLS // max(1, answers))
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        yield rng.multinomial(answers, np.full(answers, 1 / answers), size).astype(np.float64)


def replicates(judged: Sequence[Resampled], answers: int, rounds: int, seed: int, name: str = "") -> dict[str, Floats]:
    """Every value of each draw: (rounds,)."""
    if not answers or not rounds:
        return {}
    found: dict[str, list[Floats]] = {}
    for drawn in draws(answers, rounds, seed, name):
        for one in judged:
            for key, values in one.resampled(drawn).items():
                found.setdefault(key, []).append(values)
    return {key: np.concatenate(values) for key, values in found.items()}


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """The middle part of the values; None where no draw had anything to judge."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(values: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """The interval of each metric that has one."""
    found = {name: interval(drawn) for name, drawn in values.items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}
