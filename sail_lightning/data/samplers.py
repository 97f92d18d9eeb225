"""How a source settles what a record leaves open, such as which wording and which objects to ask about.

Training draws at random; a check takes everything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from sail_lightning.settings.renames import renamed, warn

T = TypeVar("T")


class Sampler(ABC):
    """Makes a source's choices, always in the order in which the source asks for them."""

    @abstractmethod
    def choice(self, options: Sequence[T]) -> T:
        """Returns one of several options."""

    @abstractmethod
    def sample(self, options: Sequence[T], most: int | None = None) -> list[T]:
        """Returns at most `most` of several options, each at most once; None is no limit."""

    @abstractmethod
    def integer(self, low: int, high: int) -> int:
        """Returns an integer from `low` to `high`, both included."""

    @abstractmethod
    def bernoulli(self, probability: float) -> bool:
        """Returns whether an event of this probability happens."""

    # Names of version 0.1.0.

    def one(self, options: Sequence[T]) -> T:
        warn("Sampler.one", "Sampler.choice")
        return self.choice(options)

    def some(self, options: Sequence[T], most: int | None = None) -> list[T]:
        warn("Sampler.some", "Sampler.sample")
        return self.sample(options, most)

    def number(self, low: int, high: int) -> int:
        warn("Sampler.number", "Sampler.integer")
        return self.integer(low, high)

    def chance(self, probability: float) -> bool:
        warn("Sampler.chance", "Sampler.bernoulli")
        return self.bernoulli(probability)


class RandomSampler(Sampler):
    """Draws at random: options without replacement and in random order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def sample(self, options: Sequence[T], most: int | None = None) -> list[T]:
        return [options[int(index)] for index in self.rng.permutation(len(options))[:most]]

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def bernoulli(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


class ExhaustiveSampler(Sampler):
    """Takes the first wording, all objects in their own order, and no event that depends on chance: for checks."""

    def choice(self, options: Sequence[T]) -> T:
        return options[0]

    def sample(self, options: Sequence[T], most: int | None = None) -> list[T]:
        return list(options)

    def integer(self, low: int, high: int) -> int:
        return high

    def bernoulli(self, probability: float) -> bool:
        return False


_NAMES: dict[str, Any] = {"Choice": "Sampler", "Drawn": "RandomSampler", "Everything": "ExhaustiveSampler"}
__getattr__ = renamed(__name__, _NAMES)
