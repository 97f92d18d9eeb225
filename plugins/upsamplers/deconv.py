"""The paper's upsampler: transposed and depth-wise convolutions that double the grid of vision tokens, step by step."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.registry import register

OFFICIAL_PARTS = {"deconv": "0", "depthwise": "2.depthwise", "pointwise": "2.pointwise", "norm": "3.ln"}
"""Parts of a block, in our names and in the official ones; shapes agree."""


class UpsampleBlock(nn.Module):
    """(B, h, w, C) to (B, 2h, 2w, C): 2x2 transposed convolution, GELU, depth-wise 3x3, point-wise 1x1, LayerNorm.

    Activations are channels-last throughout, so the transposed and the point-wise convolution are one matrix product
    each and the norm needs no transpose. Weights keep the layouts of the convolutions they stand for.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, h, w, C) to (B, 2h, 2w, C)."""
        assert self.deconv.bias is not None
        features = F.gelu(transposed_conv_2x2(features, self.deconv.weight, self.deconv.bias))
        features = self.depthwise(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        features = F.linear(features, self.pointwise.weight.flatten(1), self.pointwise.bias)
        return self.norm(features)


@register
class DeconvUpsampler(Upsampler):
    """Learnable upsampling with as many blocks as lead from the patch size to `stride` (paper, section 3.2).

    Args:
        stride: pixels per mask feature. The paper says 4; the official weights were trained with 2.
        channels: width of the blocks and of the mask features; None is min(hidden size, 1024), as in the official
            code. Where it differs from the hidden size, Linear - ReLU - Linear leads there first.
    """

    def __init__(self, stride: int = 4, channels: int | None = None) -> None:
        super().__init__()
        self.stride = stride
        self.channels = channels

    def build(self, dims: Dims) -> Dims:
        """Makes the blocks.

        Raises:
            SailUsageError: patch size / stride is not a power of two.
        """
        ratio, rest = divmod(dims.patch_size, self.stride)
        if rest or ratio.bit_count() != 1:
            raise SailUsageError(
                f"DeconvUpsampler doubles the grid in every block, so patch size / stride must be a power of two, "
                f"not {dims.patch_size} / {self.stride}; choose another stride, or BilinearUpsampler"
            )
        hidden = dims.hidden_size
        channels = self.channels or min(hidden, 1024)
        self.pre_projector: nn.Module = nn.Identity()
        if channels != hidden:
            self.pre_projector = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.blocks = nn.ModuleList(UpsampleBlock(channels) for _ in range(ratio.bit_length() - 1))
        return replace(dims, feature_channels=channels, feature_stride=self.stride)

    def forward(self, features: Tensor) -> Tensor:
        """Vision tokens (B, D, h, w) to mask features (B, channels, h*k, w*k), channels-last in memory."""
        features = self.pre_projector(features.permute(0, 2, 3, 1))
        for block in self.blocks:
            features = block(features)
        return features.permute(0, 3, 1, 2)

    def official_names(self) -> dict[str, str]:
        """Our parameter names to those of the official checkpoints, for conversion either way."""
        names = {}
        for name in self.state_dict():
            if name.startswith("pre_projector."):
                names[name] = f"image_feature_{name}"
            else:
                blocks, index, part, kind = name.split(".")
                names[name] = f"upsample_{blocks}.{index}.{OFFICIAL_PARTS[part]}.{kind}"
        return names


def transposed_conv_2x2(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution with kernel = stride = 2, on channels-last features: a matrix product and a shuffle.

    Features (B, h, w, C), weight (C, O, 2, 2), bias (O,), to (B, 2h, 2w, O). With stride equal to the kernel size every
    output pixel has exactly one input pixel, so nothing is summed over neighbours.
    """
    batch, height, width, channels = features.shape
    out = weight.shape[1]
    matrix = weight.permute(0, 2, 3, 1).reshape(channels, 4 * out)
    pixels = torch.addmm(bias.repeat(4), features.reshape(-1, channels), matrix)
    pixels = pixels.view(batch, height, width, 2, 2, out).permute(0, 1, 3, 2, 4, 5)
    return pixels.reshape(batch, 2 * height, 2 * width, out)
