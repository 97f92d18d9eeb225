"""Stored form of features, float16 or int8 with a scale per channel, and its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sail_lightning.errors import SailError

StoredAs = Literal["float16", "int8"]


@dataclass(frozen=True)
class Entry:
    """Stored features of one image: `values` (C, h, w) float16, or int8 with `scale` (C,) float32."""

    values: Tensor
    scale: Tensor | None = None

    def decoded(self, device: torch.device | str = "cpu") -> Tensor:
        """Returns the features (C, h, w) in float32 on a device."""
        values = self.values.to(device, non_blocking=True).float()
        return values if self.scale is None else values * self.scale.to(device, non_blocking=True)[:, None, None]

    @property
    def size(self) -> int:
        """Size on disk in bytes, without names."""
        scale = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return self.values.numel() * self.values.element_size() + scale


@dataclass(frozen=True)
class Error:
    """Error of decoded features: the largest difference, and sums of squares of the differences and the features."""

    largest: float = 0.0
    squares: float = 0.0
    of_features: float = 0.0

    def __add__(self, other: Error) -> Error:
        return Error(
            max(self.largest, other.largest), self.squares + other.squares, self.of_features + other.of_features
        )

    @property
    def relative(self) -> float:
        """Root mean square of the differences, relative to that of the features."""
        return math.sqrt(self.squares / self.of_features) if self.of_features else 0.0


def encode(features: Tensor, stored_as: StoredAs) -> tuple[Entry, Error]:
    """Encodes features (C, h, w) of any floating dtype and device; returns them on the CPU, and their error.

    Raises:
        SailError: Features are not finite, or too large for float16.
    """
    exact = features.float().cpu()
    if not exact.isfinite().all():
        raise SailError("the teacher's features are not finite; compute them with dtype: float32")
    if stored_as == "float16":
        entry = Entry(exact.half())
        if not entry.values.isfinite().all():
            raise SailError(
                f"the teacher's features reach {exact.abs().max():.3g}, more than float16 holds; store int8"
            )
    else:
        scale = exact.abs().amax((1, 2)) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        entry = Entry((exact / scale[:, None, None]).round().clamp(-127, 127).to(torch.int8), scale)
    difference = (entry.decoded() - exact).double()
    squares, whole = difference.square().sum(), exact.double().square().sum()
    return entry, Error(float(difference.abs().max()), float(squares), float(whole))
