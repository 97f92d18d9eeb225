"""Settings of an expert and its training, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:
    from sail_lightning.settings.ranges import NonNegativeInt, PositiveFloat, PositiveInt

GROUPS = 32
"""Number of channel groups in the norms of the pixel decoder."""
SMALLEST = 64
"""Smallest side of an image in pixels; the coarsest features have a stride of 32, and a single one cannot be normed."""


@dataclass(frozen=True)
class Recipe:
    """Settings of an expert and its training.

    Args:
        steps: Number of optimiser steps.
        batch: Number of images per step.
        size: Shorter side of the images in pixels, 64 or more.
        width: Number of feature channels, a multiple of 32.
        queries: Largest number of objects that are found in an image.
        words: Number of last words of a phrase that are its class; 0 gives all one class.
        lr: Highest learning rate.
        seed: Seed of weights and order.
        workers: Number of reading processes; 0 reads in this one.

    Raises:
        SailUsageError: A number is out of range.
    """

    steps: PositiveInt = 2000
    batch: PositiveInt = 16
    size: PositiveInt = 128
    width: PositiveInt = 64
    queries: PositiveInt = 20
    words: NonNegativeInt = 1
    lr: PositiveFloat = 1e-3
    seed: NonNegativeInt = 0
    workers: NonNegativeInt = 0

    def __post_init__(self) -> None:
        from sail_lightning.settings.ranges import check_fields

        check_fields(self)
        if self.width % GROUPS:
            raise SailUsageError(f"Recipe: width must be a multiple of {GROUPS}, not {self.width}")
        if self.size < SMALLEST:
            raise SailUsageError(f"Recipe: size must be {SMALLEST} or more, not {self.size}")
