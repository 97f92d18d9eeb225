"""Focal cross-entropy for masks (Lin et al. 2017): a whole loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sail_lightning.model.losses import MaskLoss, MaskLossSums, resize
from sail_lightning.registry import register
from sail_lightning.settings.ranges import NonNegativeFloat


@register
class FocalMaskLoss(MaskLoss):
    """`MaskLoss` with focal cross-entropy on all pixels; `gamma` 0 is plain cross-entropy."""

    def __init__(self, gamma: NonNegativeFloat = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma

    def forward(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> MaskLossSums:
        """Per image, logits (n, h, w) and targets (n, H, W) bool to sums over all masks."""
        pairs = zip(logits, targets, strict=True)
        return replace(super().forward(logits, targets), bce=sum(self._focal(*pair) for pair in pairs))

    def _focal(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(
            resize(logits.float(), targets.shape[-2:]), targets.float(), reduction="none"
        )
        return self.bce_weight * ((1 - (-losses).exp()) ** self.gamma * losses).mean((1, 2)).sum()
