"""Upsampling guided by the image: vision tokens are spread over similar pixels. Beyond the paper."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.errors import SailUsageError
from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.plugins.upsamplers.bilinear import whole_ratio
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

TENT_FLOOR = 0.05
"""Initial weight of a neighbour that bilinear interpolation would leave out."""


@register
class GuidedUpsampler(Upsampler):
    """Joint upsampling: a fine feature is a mean of the tokens around it, weighted by the similarity of the image.

    A small convolutional network describes each fine position by the raw pixels; a token's description is the mean over
    its patch. The weights of the `window` x `window` tokens around a position are a softmax of the similarity of the
    two descriptions plus a learned spatial kernel, which starts as bilinear interpolation. So borders may follow edges
    within a patch. A projection of the position's own description is added at the end.

    Joint bilateral upsampling (Kopf et al. 2007) with a learned range kernel, as in FeatUp (Fu et al. 2024); queries
    from pixels and keys from what tokens cover, as in JAFAR (Couairon et al. 2025).

    Args:
        stride: pixels per mask feature; must divide the patch size.
        channels: number of channels of the mask features; None is min(hidden size, 1024).
        guide_channels: number of channels of the descriptions.
        window: side of the neighbourhood in tokens, an odd number.
    """

    guided = True

    def __init__(
        self,
        stride: PositiveInt = 4,
        channels: PositiveInt | None = None,
        guide_channels: PositiveInt = 32,
        window: PositiveInt = 3,
    ) -> None:
        super().__init__()
        if window % 2 == 0:
            raise SailUsageError(f"GuidedUpsampler needs an odd window, not {window}")
        self.stride = stride
        self.channels = channels
        self.guide_channels = guide_channels
        self.window = window

    def build(self, dims: Dims) -> Dims:
        """Makes the layers; raises SailUsageError where `stride` does not divide the patch size."""
        self.ratio = whole_ratio(self, dims.patch_size, self.stride)
        channels, guide = self.channels or min(dims.hidden_size, 1024), self.guide_channels
        self.values = nn.Linear(dims.hidden_size, channels)
        self.look = nn.Sequential(
            nn.Conv2d(3, guide, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(guide, guide, kernel_size=self.stride, stride=self.stride),
            nn.GELU(),
        )
        self.query = nn.Linear(guide, guide)
        self.key = nn.Linear(guide, guide, bias=False)  # a bias, equal for all keys, would cancel in the softmax
        self.spatial = nn.Parameter(torch.empty(self.ratio**2, self.window**2))
        with torch.no_grad():
            self.spatial.copy_(tent(self.ratio, self.window).add(TENT_FLOOR).log())
        self.detail = nn.Linear(guide, channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        return replace(dims, feature_channels=channels, feature_stride=self.stride)

    def forward(self, features: Tensor, images: Tensor | None = None) -> Tensor:
        """Maps vision tokens (B, D, h, w) and images (B, 3, h*P, w*P) uint8 to mask features (B, channels, h*k, w*k).

        Without images all positions look the same, and only the spatial kernel counts. The result is channels-last in
        memory.
        """
        k = self.ratio
        batch, _, height, width = features.shape
        values = self.values(features.permute(0, 2, 3, 1))
        if images is None:
            side = k * self.stride
            seen = values.new_zeros(batch, 3, height * side, width * side, dtype=self.spatial.dtype)
        else:
            seen = normalised(images).to(self.spatial.dtype)
        guide = self.look(seen).permute(0, 2, 3, 1)  # (B, h*k, w*k, G)
        cells = guide.unflatten(2, (width, k)).unflatten(1, (height, k)).transpose(2, 3).flatten(3, 4)  # k*k per token
        weights = self._weights(self.query(cells), self.key(cells.mean(3)))
        pixels = weights.to(values.dtype) @ self._around(values) + self.detail(cells)
        pixels = self.norm(pixels).unflatten(3, (k, k)).permute(0, 5, 1, 3, 2, 4)
        return pixels.flatten(4, 5).flatten(2, 3)

    def _weights(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Maps queries (B, h, w, k*k, G), keys (B, h, w, G) to weights (B, h, w, k*k, window*window) that sum to 1."""
        similarity = queries @ self._around(keys).transpose(3, 4) / math.sqrt(keys.shape[-1])
        inside = self._around(keys.new_ones(1, *keys.shape[1:3], 1)).squeeze(4)  # zero beyond the image's edge
        scores = similarity.float() + self.spatial.float()
        return scores.masked_fill(inside[:, :, :, None] == 0, -torch.inf).softmax(-1)

    def _around(self, maps: Tensor) -> Tensor:
        """Gathers the neighbours of each position of maps (B, h, w, C), row by row: (B, h, w, window*window, C).

        Beyond the edge they are zero.
        """
        reach = self.window // 2
        padded = F.pad(maps, (0, 0, reach, reach, reach, reach))
        height, width = maps.shape[1:3]
        steps = range(self.window)
        return torch.stack([padded[:, y : y + height, x : x + width] for y in steps for x in steps], 3)


def normalised(images: Tensor) -> Tensor:
    """Normalises images (B, 3, H, W) uint8 to float32 of about unit variance, as the patch embedding does."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD)
    )
    return (images.float() / 255 - mean) / std


def tent(ratio: int, window: int) -> Tensor:
    """Returns the bilinear weights (ratio*ratio, window*window) float32 of the tokens around each fine position.

    Both axes go row by row; pixel centres are aligned, not corners.
    """
    positions = (torch.arange(ratio, dtype=torch.float32) + 0.5) / ratio - 0.5
    tokens = torch.arange(window, dtype=torch.float32) - window // 2
    side = (1 - (positions[:, None] - tokens).abs()).clamp(min=0)  # (ratio, window)
    return torch.einsum("ay,bx->abyx", side, side).flatten(2).flatten(0, 1)
