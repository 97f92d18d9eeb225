"""How an expert is made and trained; torch is not needed to say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sail_lightning.errors import SailUsageError

if TYPE_CHECKING:
    from sail_lightning.settings.ranges import NonNegativeInt, PositiveFloat, PositiveInt

GROUPS = 32
"""Groups of channels in the pixel decoder's norms."""
SMALLEST = 64
"""Pixels of an image's side: the coarsest features are of 32 pixels, and one alone has no spread to be normed by."""


@dataclass(frozen=True)
class Recipe:
    """How an expert is made and trained.

    Args:
        steps: Optimiser steps.
        batch: Images a step.
        size: Shorter side of its images in pixels, 64 or more.
        width: Channels of its features, a multiple of 32.
        queries: Most objects it finds in an image.
        words: Last words of a phrase that are its class; 0 is one class of all.
        lr: Highest learning rate.
        seed: Of weights and order.
        workers: Processes that read; 0 is this one.

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
