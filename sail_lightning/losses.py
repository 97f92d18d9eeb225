"""Losses. Each returns a sum and what it counts; one place (`module`) divides, over the whole accumulation window.

Sources: data_eval_spec D3 and the official model (BCE 2.0, dice 0.5, 12,544 sampled points, oversampling 3.0,
importance 0.75); point sampling as in PointRend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LanguageLoss(nn.Module):
    """Cross-entropy over supervised rows only. Args: label_smoothing: of the targets, 0 to 1."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Logits (S, V), targets (S,) int64 and weights (S,) to the weighted sum, a float32 scalar."""
        losses = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=self.label_smoothing)
        return (losses * weights).sum()


@dataclass(frozen=True)
class MaskLossSums:
    """Sums over masks of the weighted binary cross-entropy and dice losses, float32 scalars."""

    bce: Tensor
    dice: Tensor


class MaskLoss(nn.Module):
    """Binary cross-entropy and dice, on all pixels of small pictures and on sampled points of large ones.

    Args:
        bce_weight: of the cross-entropy.
        dice_weight: of the dice loss.
        num_points: sampled per mask; a target with no more pixels is compared densely, pixel by pixel.
        oversample_ratio: candidates per kept point.
        importance_ratio: share of the points taken where the prediction is least certain, 0 to 1.
        resolution: where a dense comparison happens: at the `target`'s resolution (logits resized bilinearly), or at
            that of the `features` (targets resized to the nearest pixel, the official form without points).
    """

    def __init__(
        self,
        bce_weight: float = 2.0,
        dice_weight: float = 0.5,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        resolution: Literal["target", "features"] = "target",
    ) -> None:
        super().__init__()
        self.bce_weight, self.dice_weight = bce_weight, dice_weight
        self.num_points, self.oversample_ratio, self.importance_ratio = num_points, oversample_ratio, importance_ratio
        self.resolution = resolution

    def forward(self, logits: Sequence[Tensor], targets: Sequence[Tensor]) -> MaskLossSums:
        """Per picture, logits (n, h, w) and targets (n, H, W) bool, to sums over all masks."""
        if not logits:
            raise ValueError("MaskLoss needs at least one (possibly empty) group of masks")
        bce, dice = [], []
        for shape_logits, shape_targets in _by_shape(logits, targets):
            predicted, wanted = self._compare(shape_logits.float(), shape_targets)
            bce.append(F.binary_cross_entropy_with_logits(predicted, wanted, reduction="none").mean(-1).sum())
            dice.append(dice_loss(predicted.sigmoid(), wanted).sum())
        return MaskLossSums(self.bce_weight * torch.stack(bce).sum(), self.dice_weight * torch.stack(dice).sum())

    def _compare(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets (n, K) at the points where they are compared."""
        if targets.shape[-2] * targets.shape[-1] <= self.num_points or self.num_points == 0:
            if self.resolution == "features":
                targets = F.interpolate(targets[:, None].float(), logits.shape[-2:], mode="nearest")[:, 0]
            elif logits.shape[-2:] != targets.shape[-2:]:
                logits = resize(logits, targets.shape[-2:])
            return logits.flatten(1), targets.flatten(1).float()
        points = uncertain_points(logits.detach(), self.num_points, self.oversample_ratio, self.importance_ratio)
        return sample_points(logits, points), sample_points(targets.float(), points)


def dice_loss(probabilities: Tensor, targets: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over the last dimension: (n, K), (n, K) to (n,)."""
    overlap = (probabilities * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)


def resize(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear resize of (n, h, w), align_corners off."""
    if maps.shape[0] == 0:
        return maps.new_zeros(0, *size) + maps.sum()
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps (n, h, w) at points (n, K, 2), (x, y) in [0, 1], zero outside: (n, K)."""
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
    draws: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Points (n, num_points, 2) in [0, 1]: the least certain of an oversampled uniform draw, and fresh uniform ones.

    `draws` replaces the two uniform draws, candidates (n, floor(K * oversample), 2) and extra (n, rest, 2).
    """
    count = logits.shape[0]
    candidates_count, kept = int(num_points * oversample_ratio), int(importance_ratio * num_points)
    candidates = draws[0] if draws else torch.rand(count, candidates_count, 2, device=logits.device)
    extra = draws[1] if draws else torch.rand(count, num_points - kept, 2, device=logits.device)
    certainty = sample_points(logits, candidates.to(logits.dtype)).abs()
    index = certainty.topk(kept, dim=1, largest=False).indices
    return torch.cat([candidates.gather(1, index[..., None].expand(-1, -1, 2)), extra], dim=1).to(logits.dtype)


class DistillationLoss(ABC, nn.Module):
    """How far a student's projected features are from a teacher's."""

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student (B, C, h, w) and teacher (B, C, h', w') to a loss per picture, (B,)."""


class MSEDistillation(DistillationLoss):
    """Mean squared difference; the teacher is resized bilinearly to the student's grid (official form)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        wanted = F.interpolate(teacher.to(student.dtype), student.shape[-2:], mode="bilinear", align_corners=False)
        return (student - wanted).square().mean((1, 2, 3))


def _by_shape(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Joins pictures of equal shapes, so that a batch of equal pictures is one call."""
    groups: dict[tuple[torch.Size, torch.Size], tuple[list[Tensor], list[Tensor]]] = {}
    for predicted, wanted in zip(logits, targets, strict=True):
        key = (predicted.shape[-2:], wanted.shape[-2:])
        group = groups.setdefault(key, ([], []))
        group[0].append(predicted)
        group[1].append(wanted)
    return [(torch.cat(a), torch.cat(b)) for a, b in groups.values()]
