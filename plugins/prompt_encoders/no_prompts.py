"""No visual prompts: the model does not see regions, for ablations."""

from __future__ import annotations

from torch import Tensor

from sail_lightning.interfaces import Dims, PromptEncoder, Regions
from sail_lightning.registry import register
from sail_lightning.settings.ranges import NonNegativeInt


@register
class NoPrompts(PromptEncoder):
    """Leaves the embeddings unchanged; `<PromptK>` in the text then refers to nothing in the image.

    Args:
        num_prompts: number of tokens `<Prompt0>`, `<Prompt1>`, ... that the text may use.
    """

    def __init__(self, num_prompts: NonNegativeInt = 15) -> None:
        super().__init__()
        self.num_prompts = num_prompts

    def build(self, dims: Dims) -> Dims:
        return dims

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Returns the embeddings (T, D) unchanged."""
        return embeddings
