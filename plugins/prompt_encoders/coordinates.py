"""Early fusion that also encodes where a region is, more finely than patches can. Beyond the paper."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, Regions
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.registry import register
from sail_lightning.settings.ranges import Octaves


@register
class CoordinatePrompts(PromptInjection):
    """`PromptInjection` with an embedding of the region's box, added to its patches and to the tokens that mention it.

    Injection marks the patches under a region, but not where the region lies within them: a point and a small box on
    one patch look the same. The text token `<PromptK>` carries no position at all. Here the box's four coordinates, as
    sines and cosines of rising frequency (Fourier features, Tancik et al. 2020), go through one linear layer that
    starts at zero, so training starts where `PromptInjection` does. Coordinates next to the features of a region follow
    Ferret (You et al. 2023).

    Args:
        frequencies: number of frequencies per coordinate; the highest has 2^(frequencies - 2) periods over the image.
        kwargs: arguments of `PromptInjection`.
    """

    def __init__(self, *, frequencies: Octaves = 6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.frequencies = frequencies

    def build(self, dims: Dims) -> Dims:
        dims = super().build(dims)
        self.place = nn.Linear(8 * self.frequencies, dims.hidden_size, bias=False)
        nn.init.zeros_(self.place.weight)
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds prompts and boxes of region tokens (R, D) to embeddings (T, D); returns embeddings (T, D)."""
        embeddings = super().forward(embeddings, regions, region_tokens)
        boxes = self.place(fourier(regions.boxes, self.frequencies).to(self.place.weight.dtype)).to(embeddings.dtype)
        embeddings = embeddings.index_add(0, regions.patch_rows, boxes.index_select(0, regions.patch_region))
        return embeddings.index_add(0, regions.mention_rows, boxes.index_select(0, regions.mention_region))


def fourier(coordinates: Tensor, frequencies: int) -> Tensor:
    """Maps coordinates (R, 4) in 0 .. 1 to sines and cosines (R, 8*frequencies) float32, from half a period on."""
    turns = math.pi * 2.0 ** torch.arange(frequencies, dtype=torch.float32, device=coordinates.device)
    angles = (coordinates.float()[:, :, None] * turns).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], 1)
