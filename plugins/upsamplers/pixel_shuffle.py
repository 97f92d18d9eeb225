"""Upsampling by one linear layer per vision token (sub-pixel convolution, Shi et al. 2016)."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.plugins.upsamplers.bilinear import whole_ratio
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class PixelShuffleUpsampler(Upsampler):
    """Linear - pixel shuffle - LayerNorm: every token is upsampled independently of its neighbours.

    Args:
        stride: pixels per mask feature; must divide the patch size.
        channels: number of channels of the mask features; None is min(hidden size, 1024).
    """

    def __init__(self, stride: PositiveInt = 4, channels: PositiveInt | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels

    def build(self, dims: Dims) -> Dims:
        """Makes the layers; raises SailUsageError where `stride` does not divide the patch size."""
        self.ratio = whole_ratio(self, dims.patch_size, self.stride)
        channels = self.channels or min(dims.hidden_size, 1024)
        self.expand = nn.Linear(dims.hidden_size, channels * self.ratio**2)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        return replace(dims, feature_channels=channels, feature_stride=self.stride)

    def forward(self, features: Tensor) -> Tensor:
        """Maps vision tokens (B, D, h, w) to mask features (B, channels, h*k, w*k), channels-last in memory."""
        k = self.ratio
        batch, _, height, width = features.shape
        pixels = self.expand(features.permute(0, 2, 3, 1)).view(batch, height, width, k, k, self.norm.weight.numel())
        pixels = self.norm(pixels).permute(0, 5, 1, 3, 2, 4)
        return pixels.flatten(4, 5).flatten(2, 3)
