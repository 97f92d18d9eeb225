"""Early fusion whose prompts are heard: as loud as the patches that they are added to. Beyond the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sail_lightning.interfaces import Regions
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveFloat


@register
class LoudPrompts(PromptInjection):
    """`PromptInjection`, with prompts of a set length: `loudness` times the mean length of the region's patches.

    Injection adds the embedding of a word to patches, and words are short: patches that were trained from nothing are
    several times as long, and the norm before the first layer leaves of a prompt what its share is. What a prompt says
    (its direction) is learned as before; how loud it says it no longer depends on how patches happen to grow.

    Args:
        loudness: length of a prompt, in mean lengths of the patches under it.
        kwargs: arguments of `PromptInjection`.
    """

    def __init__(self, *, loudness: PositiveFloat = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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
