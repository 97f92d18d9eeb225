"""What a source leaves open, such as which wording and which objects: drawn at random for training, all for a check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Choice(ABC):
    """Answers a source's open questions, always in the order in which they are asked."""

    @abstractmethod
    def one(self, options: Sequence[T]) -> T:
        """One of several."""

    @abstractmethod
    def some(self, options: Sequence[T], most: int | None = None) -> list[T]:
        """At most so many of several, each once."""

    @abstractmethod
    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""

    @abstractmethod
    def chance(self, probability: float) -> bool:
        """Whether something happens that has this probability."""


class Drawn(Choice):
    """Draws at random, without replacement and in random order."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def one(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def some(self, options: Sequence[T], most: int | None = None) -> list[T]:
        return [options[int(place)] for place in self.rng.permutation(len(options))[:most]]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


class Everything(Choice):
    """The first wording, all objects in their own order, nothing that happens by chance: what a check has to see."""

    def one(self, options: Sequence[T]) -> T:
        return options[0]

    def some(self, options: Sequence[T], most: int | None = None) -> list[T]:
        return list(options)

    def number(self, low: int, high: int) -> int:
        return high

    def chance(self, probability: float) -> bool:
        return False
