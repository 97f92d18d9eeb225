"""Repeats each vision token, then smooths with one learned convolution: a whole plugin."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class MyUpsampler(Upsampler):
    def __init__(self, channels: PositiveInt = 64) -> None:
        super().__init__()
        self.channels = channels

    def build(self, dims: Dims) -> Dims:
        self.smooth = nn.Conv2d(dims.hidden_size, self.channels, kernel_size=3, padding=1)
        return replace(dims, feature_channels=self.channels, feature_stride=dims.patch_size // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Vision tokens (B, D, h, w) to mask features (B, channels, 2h, 2w)."""
        return self.smooth(F.interpolate(features, scale_factor=2.0))
