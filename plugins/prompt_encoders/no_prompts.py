"""Regions are not seen: what is left when visual prompts are ablated."""

from __future__ import annotations

from torch import Tensor

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.registry import register
from sail_lightning.settings.ranges import NonNegativeInt


@register
class NoPrompts(PromptEncoder):
    """Leaves the embeddings alone; `<PromptK>` in the text is then a word without a place.

    Args:
        num_prompts: how many tokens `<Prompt0>`, `<Prompt1>`, ... the text may use.
    """

    def __init__(self, num_prompts: NonNegativeInt = 15) -> None:
        super().__init__()
        self.num_prompts = num_prompts

    def build(self, dims: Dims) -> Dims:
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Embeddings (T, D), unchanged."""
        return embeddings
