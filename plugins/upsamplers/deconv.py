"""The paper's upsampler: transposed and depth-wise convolutions that double the grid of vision tokens, step by step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.plugins.upsamplers.checkpointing import checkpoint_activations
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

OFFICIAL_PARTS = {"deconv": "0", "depthwise": "2.depthwise", "pointwise": "2.pointwise", "norm": "3.ln"}
"""Parts of a block: our names to the official names; the shapes are equal."""
TILE_ELEMENTS = {False: 2**21, True: 2**25}
"""Elements in a tile of a map, by whether it is on CUDA: the CPU needs tiles that fit its caches, CUDA large ones."""

Tile = tuple[list[Tensor], bool, bool]
"""Rows of a map in pieces, with one row of each neighbour, and whether there is a neighbour above and below."""


class UpsampleBlock(nn.Module):
    """Doubles a grid: 2x2 transposed convolution, GELU, depth-wise 3x3, point-wise 1x1, LayerNorm.

    Activations are channels-last throughout, so the transposed and the point-wise convolution are one matrix product
    each and the norm needs no transpose. Weights have the layouts of the convolutions that they stand for.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, kernel_size=1)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, h, w, C) to features (B, 2h, 2w, C)."""
        return self.refine(self.expand(features))

    def expand(self, features: Tensor) -> Tensor:
        """Applies the transposed convolution: features (B, h, w, C) to 2 x 2 pixels of each, (B, h, w, 2, 2, C)."""
        assert self.deconv.bias is not None
        return pixels_2x2(features, self.deconv.weight, self.deconv.bias)

    def refine(self, pixels: Tensor, above: bool = False, below: bool = False) -> Tensor:
        """Applies all that follows: pixels (B, h, w, 2, 2, C) to features (B, 2h, 2w, C).

        For a tile of an image, `above` and `below` say that its first and last row belong to its neighbours: they are
        read, but left out of the result.
        """
        features = F.gelu(interleaved(pixels))
        if above or below:  # one of a neighbour's two rows is read; the edge of an image is padded with zeros
            features = features[:, int(above) : features.shape[1] - int(below)]
            features = F.pad(features, (0, 0, 0, 0, int(not above), int(not below)))
        depthwise = self.depthwise
        padding = (0, 1) if above or below else (1, 1)
        features = F.conv2d(
            features.permute(0, 3, 1, 2), depthwise.weight, depthwise.bias, padding=padding, groups=depthwise.groups
        ).permute(0, 2, 3, 1)
        features = F.linear(features, self.pointwise.weight.flatten(1), self.pointwise.bias)
        return self.norm(features)


@register
class DeconvUpsampler(Upsampler):
    """Learned upsampling, one block per factor of two from the patch size to `stride` (paper, section 3.2).

    Args:
        stride: pixels per mask feature; 4 in the paper, 2 in the official weights.
        channels: width of the blocks and of the mask features; None is min(hidden size, 1024), as in the official
            code. Where it differs from the hidden size, Linear - ReLU - Linear projects to it first.
    """

    def __init__(self, stride: PositiveInt = 4, channels: PositiveInt | None = None) -> None:
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
        """Maps vision tokens (B, D, h, w) to mask features (B, channels, h*k, w*k), channels-last in memory."""
        features = self.pre_projector(features.permute(0, 2, 3, 1))
        for block in self.blocks:
            features = checkpoint_activations(block, features)
        return features.permute(0, 3, 1, 2)

    def apply_head(self, features: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """Computes `head(self(features))` tile by tile in the last block, which takes most of the time and memory.

        With gradients the last block's transposed convolution is one product, which is kept for the backward pass, and
        the rest runs in tiles. Without gradients that product is computed in tiles too, so the largest maps never exist
        as a whole, and images are processed in chunks wherever they are independent.
        """
        if not self.blocks or features.shape[0] == 0:
            return super().apply_head(features, head)
        last: Any = self.blocks[-1]
        features = self._before_last(features)
        height = max(2, _limit(features) // (4 * features[:, 0].numel()))
        tiles = _tiles(last.expand(features), height) if torch.is_grad_enabled() else self._expand(features, height)
        found = [
            checkpoint_activations(functools.partial(self._head_on_tile, head, above, below), *pieces)
            for pieces, above, below in tiles
        ]
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def _before_last(self, features: Tensor) -> Tensor:
        """Maps vision tokens (B, D, h, w) to the input of the last block, (B, h', w', C)."""

        def run(features: Tensor) -> Tensor:
            features = self.pre_projector(features.permute(0, 2, 3, 1))
            for block in self.blocks[:-1]:
                features = checkpoint_activations(block, features)
            return features

        if torch.is_grad_enabled():
            return run(features)
        last: Any = self.blocks[-1]
        pixels = features[0, 0].numel() * 4 ** (len(self.blocks) - 1)
        return _in_chunks(run, features, _limit(features) // (pixels * last.deconv.in_channels))

    def _expand(self, features: Tensor, height: int) -> Iterator[Tile]:
        """Yields the tiles of `last.expand(features)`, each computed when it is needed."""
        last: Any = self.blocks[-1]
        edges = _edges(features.shape[1], height)
        pieces: list[Tensor] = []
        for first, end in pairwise(edges):
            above, below = first > 0, end < edges[-1]
            # The last row of the previous tile and its neighbour are computed already.
            pieces = [piece[:, -2:] for piece in pieces[-1:]]
            pieces.append(last.expand(features[:, first + above : end + below]))
            yield pieces, above, below

    def _head_on_tile(self, head: Callable[[Tensor], Tensor], above: bool, below: bool, *pieces: Tensor) -> Tensor:
        """Applies the last block and the head to a tile in pieces, (B, s, w, 2, 2, C) together."""
        last: Any = self.blocks[-1]
        pixels = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        count = len(pixels) if torch.is_grad_enabled() else _limit(pixels) // pixels[0].numel()
        features = _in_chunks(lambda chunk: last.refine(chunk, above, below), pixels, count)
        return head(features.permute(0, 3, 1, 2))

    def official_names(self) -> dict[str, str]:
        """Maps our parameter names to those of the official checkpoints, for conversion in both directions."""
        names = {}
        for name in self.state_dict():
            if name.startswith("pre_projector."):
                names[name] = f"image_feature_{name}"
            else:
                blocks, index, part, kind = name.split(".")
                names[name] = f"upsample_{blocks}.{index}.{OFFICIAL_PARTS[part]}.{kind}"
        return names


def _tiles(pixels: Tensor, height: int) -> Iterator[Tile]:
    """Cuts a map (B, h, ...) into tiles with a single split: the backward pass of a slice would zero-fill a map."""
    edges = _edges(pixels.shape[1], height)
    if len(edges) == 2:
        yield [pixels], False, False
        return
    sizes = [size for first, end in pairwise(edges) for size in (1, end - first - 2, 1)]
    pieces = pixels.split(sizes, 1)
    for first in range(0, len(pieces), 3):
        above, below = first > 0, first + 3 < len(pieces)
        yield list(pieces[first - above : first + 3 + below]), above, below


def _edges(rows: int, height: int) -> list[int]:
    """Returns the first rows of tiles of about `height` rows, and the end; a tile has two rows or more if there are."""
    count = max(1, rows // height)
    return [rows * index // count for index in range(count + 1)]


def _limit(tensor: Tensor) -> int:
    """Returns the number of elements of a tile on the device of a tensor."""
    return TILE_ELEMENTS[tensor.device.type == "cuda"]


def _in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, count: int) -> Tensor:
    """Returns `function(images)`, computed for `count` images at a time (at least one)."""
    if len(images) <= max(1, count):
        return function(images)
    return torch.cat([function(chunk) for chunk in images.split(max(1, count))])


def pixels_2x2(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Computes a transposed convolution with kernel = stride = 2 on channels-last features as one matrix product.

    Features (B, h, w, C), weight (C, O, 2, 2) and bias (O,) give the 2 x 2 pixels of each feature,
    (B, h, w, 2, 2, O). With stride equal to the kernel size every output pixel has exactly one input pixel, so nothing
    is summed over neighbours; `interleaved` brings the pixels into order.
    """
    channels, out = weight.shape[:2]
    matrix = weight.permute(0, 2, 3, 1).reshape(channels, 4 * out)
    pixels = torch.addmm(bias.repeat(4), features.reshape(-1, channels), matrix)
    return pixels.view(*features.shape[:3], 2, 2, out)


def interleaved(pixels: Tensor) -> Tensor:
    """Shuffles pixels (B, h, w, 2, 2, O) to a map (B, 2h, 2w, O)."""
    return pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
