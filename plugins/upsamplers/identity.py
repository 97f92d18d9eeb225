"""No upsampling: the plain baseline that the paper starts from."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.registry import register


@register
class IdentityUpsampler(Upsampler):
    """Mask features are the vision tokens themselves, one per patch."""

    def build(self, dims: Dims) -> Dims:
        return replace(dims, feature_channels=dims.hidden_size, feature_stride=dims.patch_size)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the vision tokens (B, D, h, w) unchanged."""
        return features
