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
from sail_lightning.plugins.upsamplers.checkpointing import lean
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

OFFICIAL_PARTS = {"deconv": "0", "depthwise": "2.depthwise", "pointwise": "2.pointwise", "norm": "3.ln"}
"""Parts of a block, in our names and in the official ones; shapes agree."""
STRIP = {False: 2**21, True: 2**25}
"""Numbers in a strip of a map: on the CPU it stays near the cache, on CUDA it keeps the device busy."""

Strip = tuple[list[Tensor], bool, bool]
"""Rows of a map in pieces, with its neighbours' next rows, and whether it has a neighbour above and below."""


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
        return self.refine(self.expand(features))

    def expand(self, features: Tensor) -> Tensor:
        """The transposed convolution: features (B, h, w, C) to 2 x 2 pixels of each, (B, h, w, 2, 2, C)."""
        assert self.deconv.bias is not None
        return pixels_2x2(features, self.deconv.weight, self.deconv.bias)

    def refine(self, pixels: Tensor, above: bool = False, below: bool = False) -> Tensor:
        """The rest: pixels (B, h, w, 2, 2, C) to (B, 2h, 2w, C).

        Of a strip of a picture, `above` and `below` say that its first and last row are its neighbours': they are
        looked at, and left out.
        """
        features = F.gelu(interleaved(pixels))
        if above or below:  # of its two rows, a neighbour's next one counts; a picture's edge is zero
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
    """Learnable upsampling with as many blocks as lead from the patch size to `stride` (paper, section 3.2).

    Args:
        stride: pixels per mask feature. The paper says 4; the official weights were trained with 2.
        channels: width of the blocks and of the mask features; None is min(hidden size, 1024), as in the official
            code. Where it differs from the hidden size, Linear - ReLU - Linear leads there first.
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
        """Vision tokens (B, D, h, w) to mask features (B, channels, h*k, w*k), channels-last in memory."""
        features = self.pre_projector(features.permute(0, 2, 3, 1))
        for block in self.blocks:
            features = lean(block, features)
        return features.permute(0, 3, 1, 2)

    def read(self, features: Tensor, reader: Callable[[Tensor], Tensor]) -> Tensor:
        """As `Upsampler.read`. The last block and the reader run strip by strip: most of the time and nearly all of the
        memory of a mask are there.

        With gradients the last block's transposed convolution is one product, which is kept for the backward pass, and
        what follows runs in strips. Without them that product is made in strips too, so the largest maps are never
        whole, and pictures are taken a few at a time wherever they need not be together.
        """
        if not self.blocks or features.shape[0] == 0:
            return super().read(features, reader)
        last: Any = self.blocks[-1]
        features = self._before_last(features)
        height = max(2, _limit(features) // (4 * features[:, 0].numel()))
        strips = _strips(last.expand(features), height) if torch.is_grad_enabled() else self._expand(features, height)
        found = [
            lean(functools.partial(self._read_strip, reader, above, below), *pieces) for pieces, above, below in strips
        ]
        return found[0] if len(found) == 1 else torch.cat(found, 2)

    def _before_last(self, features: Tensor) -> Tensor:
        """Vision tokens (B, D, h, w) to what the last block reads, (B, h', w', C)."""

        def run(features: Tensor) -> Tensor:
            features = self.pre_projector(features.permute(0, 2, 3, 1))
            for block in self.blocks[:-1]:
                features = lean(block, features)
            return features

        if torch.is_grad_enabled():
            return run(features)
        last: Any = self.blocks[-1]
        pixels = features[0, 0].numel() * 4 ** (len(self.blocks) - 1)
        return _few(run, features, _limit(features) // (pixels * last.deconv.in_channels))

    def _expand(self, features: Tensor, height: int) -> Iterator[Strip]:
        """The strips of `last.expand(features)`, each made when it is asked for."""
        last: Any = self.blocks[-1]
        edges = _edges(features.shape[1], height)
        pieces: list[Tensor] = []
        for first, end in pairwise(edges):
            above, below = first > 0, end < edges[-1]
            # Of the strip before, the last row and its neighbour are there already.
            pieces = [piece[:, -2:] for piece in pieces[-1:]]
            pieces.append(last.expand(features[:, first + above : end + below]))
            yield pieces, above, below

    def _read_strip(self, reader: Callable[[Tensor], Tensor], above: bool, below: bool, *pieces: Tensor) -> Tensor:
        """Reads pixels that lie in pieces, (B, s, w, 2, 2, C) together."""
        last: Any = self.blocks[-1]
        pixels = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
        count = len(pixels) if torch.is_grad_enabled() else _limit(pixels) // pixels[0].numel()
        features = _few(lambda few: last.refine(few, above, below), pixels, count)
        return reader(features.permute(0, 3, 1, 2))

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


def _strips(pixels: Tensor, height: int) -> Iterator[Strip]:
    """Cuts (B, h, ...) into strips.

    One split for all: the backward pass of a slice would zero-fill a whole map.
    """
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
    """Where strips of about `height` rows, at least 2 unless there are fewer, begin and end."""
    count = max(1, rows // height)
    return [rows * place // count for place in range(count + 1)]


def _limit(tensor: Tensor) -> int:
    """Numbers in a strip, on the device of a tensor."""
    return STRIP[tensor.device.type == "cuda"]


def _few(function: Callable[[Tensor], Tensor], pictures: Tensor, count: int) -> Tensor:
    """`function(pictures)`, of `count` pictures at a time, or one where that is less."""
    if len(pictures) <= max(1, count):
        return function(pictures)
    return torch.cat([function(few) for few in pictures.split(max(1, count))])


def pixels_2x2(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution with kernel = stride = 2, on channels-last features, as a matrix product: features
    (B, h, w, C), weight (C, O, 2, 2) and bias (O,) to the 2 x 2 pixels of each, (B, h, w, 2, 2, O).

    With stride equal to the kernel size every output pixel has exactly one input pixel, so nothing is summed over
    neighbours; `interleaved` puts the pixels in place.
    """
    channels, out = weight.shape[:2]
    matrix = weight.permute(0, 2, 3, 1).reshape(channels, 4 * out)
    pixels = torch.addmm(bias.repeat(4), features.reshape(-1, channels), matrix)
    return pixels.view(*features.shape[:3], 2, 2, out)


def interleaved(pixels: Tensor) -> Tensor:
    """The shuffle: (B, h, w, 2, 2, O) to (B, 2h, 2w, O)."""
    return pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
