"""What teachers that are networks share: frozen weights in their own dtype, and pictures as the expert had them."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.sample import Task
from sail_lightning.settings.ranges import NonNegativeFloat, PositiveInt, refuse_empty

DType = Literal["float32", "bfloat16", "float16"]
Tap = Literal["vision", "mask"]


class ScheduledTeacher(Teacher):
    """What all teachers are told: which features they teach, how much their loss counts, how often and about what.

    Args:
        tap: the student features it teaches, `vision` tokens or upsampled `mask` features.
        weight: loss weight.
        every: it teaches in every so many optimiser steps, with as many times the weight.
        tasks: it teaches pictures of samples with a turn of one of these tasks; None: all.
    """

    def __init__(
        self,
        tap: Tap = "vision",
        weight: NonNegativeFloat = 1.0,
        every: PositiveInt = 1,
        tasks: list[Task] | None = None,
    ) -> None:
        super().__init__()
        refuse_empty(self, tasks=tasks)
        self.tap, self.weight, self.every, self.tasks = tap, weight, every, tasks


class FrozenTeacher(ScheduledTeacher):
    """A network that is looked at and never trained.

    A subclass makes its network in `load`, which also fills `channels`, and the statistics of pixels in [0, 1] that the
    network was trained with. `look` gives its features.

    Args:
        tap: the student features it teaches, `vision` tokens or upsampled `mask` features.
        dtype: what it computes in.
        kwargs: arguments of `ScheduledTeacher`.
    """

    network: Any
    mean: Tensor
    std: Tensor
    at_once = 8
    """Most pictures in one pass: a batch may hold many small ones, each enlarged to the expert's own size."""

    def __init__(self, tap: Tap = "vision", *, dtype: DType = "float32", **kwargs: Any) -> None:
        super().__init__(tap, **kwargs)
        self.dtype = dtype

    def build(self, dims: Dims) -> Dims:
        """Makes the network, frozen, and learns its `channels`.

        Raises:
            SailError: what `load` raises.
        """
        with _real_weights():
            mean, std = self.load()
            # Of pixels in 0 .. 255.
            self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
            self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.network.to(getattr(torch, self.dtype))
        self.requires_grad_(False)
        self.eval()
        return dims

    @abstractmethod
    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes `self.network` in float32 on the CPU, sets `self.channels`; returns mean and standard deviation, by
        channel, of pixels in [0, 1]."""

    @abstractmethod
    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that a picture of (height, width) is resized to."""

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, height, width), in the network's dtype, to features (B, channels, h, w)."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
        size = self.input_size((images.shape[-2], images.shape[-1]))
        dtype = next(self.network.parameters()).dtype
        found = [
            self.look(((resized(some, size) - self.mean) / self.std).to(dtype)) for some in images.split(self.at_once)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def train(self, mode: bool = True) -> Any:
        """A teacher stays in evaluation mode, whatever its surroundings do."""
        return super().train(False)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, height, width) uint8 at a (height, width), float32 in 0 .. 255; themselves at that size already.

    Bilinear with antialiasing, along rows and then along columns, rounded to whole numbers after each: as PIL and the
    experts' own image processors do, but for one level here and there.
    """
    pixels = images.float()
    for part in ((images.shape[-2], size[1]), size):
        if pixels.shape[-2:] != part:
            pixels = F.interpolate(pixels, part, mode="bilinear", align_corners=False, antialias=True)
            pixels = pixels.round().clamp(0, 255)
    return pixels


@contextlib.contextmanager
def _real_weights() -> Iterator[None]:
    """Weights on the CPU in float32, whatever is current: nobody fills a teacher later, or trains it in less."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
