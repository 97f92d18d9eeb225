"""Early fusion whose prompts have the norm of the patches that they are added to. Beyond the paper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sail_lightning.interfaces import Regions
from sail_lightning.plugins.prompt_encoders.injection import PromptInjection
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveFloat
from sail_lightning.settings.renames import RenamedAttribute, renamed

__getattr__ = renamed(__name__, {"LoudPrompts": "NormMatchedPrompts"})


@register
class NormMatchedPrompts(PromptInjection):
    """`PromptInjection` with prompts of a set norm: `norm_scale` times the mean norm of the region's patches.

    Injection adds token embeddings to patches, and token embeddings are short: patches that were trained from scratch
    have several times their norm, so little of a prompt is left after the first layer's norm. The direction of a prompt
    is learned as before; its norm no longer depends on how the norms of patches develop.

    Args:
        norm_scale: norm of a prompt, in mean norms of the patches under it.
        kwargs: arguments of `PromptInjection`.
    """

    loudness = RenamedAttribute("norm_scale")

    def __init__(self, *, norm_scale: PositiveFloat = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.norm_scale = norm_scale

    def forward(self, embeddings: Tensor, regions: Regions, region_tokens: Tensor) -> Tensor:
        """Adds the prompts of region tokens (R, D) to embeddings (T, D); returns embeddings (T, D)."""
        prompts = (self.proj(region_tokens) if self.projection else region_tokens).float()
        # The norms are measured without gradients, so patches are not trained to be longer or shorter.
        patches = embeddings.detach().index_select(0, regions.patch_rows).float().norm(dim=1)
        count, zeros = len(prompts), patches.new_zeros(len(prompts))
        sums = zeros.index_add(0, regions.patch_region, patches)
        sizes = zeros.index_add(0, regions.patch_region, torch.ones_like(patches))
        target = self.norm_scale * sums / sizes.clamp(min=1)
        scaled = prompts * (target / prompts.norm(dim=1).clamp(min=1e-6)).view(count, 1)
        added = scaled.index_select(0, regions.patch_region)
        return embeddings.index_add(0, regions.patch_rows, added.to(embeddings.dtype))
