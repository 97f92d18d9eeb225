"""Adds the scaled token of a prompt to the patches of its region: a whole prompt encoder."""

import torch
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class MyPromptEncoder(PromptEncoder):
    """Marks the patches of a region with the scaled embedding of its `<PromptK>` token.

    Args:
        num_prompts: number of tokens `<Prompt0>`, `<Prompt1>`, ...
    """

    def __init__(self, num_prompts: PositiveInt = 4) -> None:
        super().__init__()
        self.num_prompts = num_prompts

    def build(self, dims: Dims) -> Dims:
        self.scale = nn.Parameter(torch.ones(dims.hidden_size))
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds region tokens (R, D) to the patches of embeddings (T, D)."""
        marks = (self.scale * region_tokens).index_select(0, regions.patch_region)
        return embeddings.index_add(0, regions.patch_rows, marks.to(embeddings.dtype))
