"""Early fusion whose prompts are heard: as loud as the patches that they are added to. Beyond the paper."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sail_lightning.interfaces import Regions
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.registry import register


@register
class LoudPrompts(PromptInjection):
    """`PromptInjection`, with prompts of a set length: `loudness` times the mean length of the region's patches.

    Injection adds the embedding of a word to patches, and words are short: patches that were trained from nothing are
    several times as long, and the norm before the first layer leaves of a prompt what its share is. What a prompt says
    (its direction) is learned as before; how loud it says it no longer depends on how patches happen to grow.

    Args:
        num_prompts: how many tokens `<Prompt0>`, `<Prompt1>`, ... there are.
        projection: whether the token's embedding is projected.
        overlap: whether a patch under several regions gets the `sum` of theirs, or the `last` one.
        coverage: which patches a region covers; see `PromptInjection`.
        loudness: length of a prompt, in mean lengths of the patches under it.
    """

    def __init__(
        self,
        num_prompts: int = 15,
        projection: bool = True,
        overlap: Literal["sum", "last"] = "sum",
        coverage: Literal["cover", "nearest", "nearest_floor"] = "cover",
        loudness: float = 1.0,
    ) -> None:
        super().__init__(num_prompts, projection, overlap, coverage)
        self.loudness = loudness

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Embeddings (T, D) and region tokens (R, D) to embeddings (T, D)."""
        prompts = (self.proj(region_tokens) if self.projection else region_tokens).float()
        # A measure, not a path: patches are not trained to be loud or quiet.
        patches = embeddings.detach().index_select(0, regions.patch_rows).float().norm(dim=1)
        count, zeros = len(prompts), patches.new_zeros(len(prompts))
        sums = zeros.index_add(0, regions.patch_region, patches)
        sizes = zeros.index_add(0, regions.patch_region, torch.ones_like(patches))
        wanted = self.loudness * sums / sizes.clamp(min=1)
        scaled = prompts * (wanted / prompts.norm(dim=1).clamp(min=1e-6)).view(count, 1)
        added = scaled.index_select(0, regions.patch_region)
        return embeddings.index_add(0, regions.patch_rows, added.to(embeddings.dtype))
