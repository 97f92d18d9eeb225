"""The plain baseline: a region enters as the mean of its patches, at the tokens that mention it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt


@register
class RegionPooling(PromptEncoder):
    """Adds the projected mean of a region's patch embeddings to the `<PromptK>` tokens of the text.

    The patches are pooled before the first layer, as they come from the patch embedding: the region token carries the
    content of the region, but the patches are not marked as part of it.

    Args:
        num_prompts: number of tokens `<Prompt0>`, `<Prompt1>`, ... that the text may use.
    """

    def __init__(self, num_prompts: PositiveInt = 15) -> None:
        super().__init__()
        self.num_prompts = num_prompts

    def build(self, dims: Dims) -> Dims:
        self.proj = nn.Linear(dims.hidden_size, dims.hidden_size, bias=False)
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds pooled patches to embeddings (T, D); a region without patches adds zero."""
        # Summed in float32 at least: half precision would lose patches of a large region.
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        patches = embeddings.index_select(0, regions.patch_rows).to(wide)
        count = len(regions.token_ids)
        sums = patches.new_zeros(count, embeddings.shape[1]).index_add(0, regions.patch_region, patches)
        sizes = patches.new_zeros(count).index_add(0, regions.patch_region, patches.new_ones(len(patches)))
        means = (sums / sizes.clamp(min=1)[:, None]).to(embeddings.dtype)
        mentions = self.proj(means).index_select(0, regions.mention_region)
        return embeddings.index_add(0, regions.mention_rows, mentions.to(embeddings.dtype))
