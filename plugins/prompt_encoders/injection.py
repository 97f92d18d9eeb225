"""The paper's early fusion: a region's token is added to the patches that the region covers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class PromptInjection(PromptEncoder):
    """Adds the projected embedding of `<PromptK>` to every patch of region K, before the first layer (section 3.2).

    The projection is the official `vp_embed`: without a bias, so that patches outside all regions stay as they are.

    Args:
        num_prompts: number of tokens `<Prompt0>`, `<Prompt1>`, ...
        projection: whether the embedding is projected; EVE's prompts are added as they are.
        overlap: whether a patch under several regions gets the `sum` of their prompts, or the `last` one in the order
            they are given (official).
        rasterization: which patches a region covers: `any` patch that it touches, or those that it still touches once
            its mask is shrunk with nearest neighbours, as in official models (`nearest_pil` as PIL does,
            `nearest_torch` as torch does); thin regions may then vanish.
    """

    def __init__(
        self,
        num_prompts: PositiveInt = 15,
        projection: bool = True,
        overlap: Literal["sum", "last"] = "sum",
        rasterization: Literal["any", "nearest_pil", "nearest_torch"] = "any",
    ) -> None:
        super().__init__()
        self.num_prompts = num_prompts
        self.projection = projection
        self.overlap = overlap
        self.rasterization = rasterization

    def build(self, dims: Dims) -> Dims:
        if not self.projection:
            return dims
        self.proj = nn.Linear(dims.hidden_size, dims.hidden_size, bias=False)
        # Orthogonal: a prompt starts with the norm of its token. The decomposition needs float32.
        start = nn.init.orthogonal_(torch.empty(dims.hidden_size, dims.hidden_size, dtype=torch.float32))
        with torch.no_grad():
            self.proj.weight.copy_(start)
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds the prompts of region tokens (R, D) to embeddings (T, D); returns embeddings (T, D)."""
        prompts = (self.proj(region_tokens) if self.projection else region_tokens).index_select(0, regions.patch_region)
        return embeddings.index_add(0, regions.patch_rows, prompts.to(embeddings.dtype))
