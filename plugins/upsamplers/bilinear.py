"""Upsampling by interpolation, without weights."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class BilinearUpsampler(Upsampler):
    """Interpolates the vision tokens bilinearly (pixel centres aligned, not corners).

    Args:
        stride: pixels per mask feature; must divide the patch size.
    """

    def __init__(self, stride: PositiveInt = 4) -> None:
        super().__init__()
        self.stride = stride

    def build(self, dims: Dims) -> Dims:
        """Sets the ratio of patch size to stride; raises SailUsageError where it is no whole number."""
        self.ratio = whole_ratio(self, dims.patch_size, self.stride)
        return replace(dims, feature_channels=dims.hidden_size, feature_stride=self.stride)

    def forward(self, features: Tensor) -> Tensor:
        """Maps vision tokens (B, D, h, w) to mask features (B, D, h*k, w*k)."""
        if self.ratio == 1:
            return features
        return F.interpolate(features, scale_factor=self.ratio, mode="bilinear", align_corners=False)


def whole_ratio(plugin: Upsampler, patch_size: int, stride: int) -> int:
    """Returns patch size / stride, both in pixels; raises SailUsageError where that is no whole number."""
    ratio, rest = divmod(patch_size, stride)
    if rest or ratio < 1:
        raise SailUsageError(
            f"{type(plugin).__name__} needs a stride that divides the patch size {patch_size}, not {stride}"
        )
    return ratio
