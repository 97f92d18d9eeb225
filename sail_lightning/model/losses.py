"""Losses. Each returns a sum and what it counts; one place (`module`) divides, over the whole accumulation window.

Sources: data_eval_spec D3 and the official model (BCE 2.0, dice 0.5, 12,544 sampled points, oversampling 3.0,
importance 0.75); point sampling as in PointRend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from sail_lightning.errors import SailUsageError
from sail_lightning.registry import register, swap_point
from sail_lightning.settings.ranges import (
    Checked,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMore,
    PositiveInt,
    UnitInterval,
)

Head = Callable[[Tensor], Tensor]
"""The language head: hidden states (S, D) to vocabulary logits (S, V)."""


@register
@swap_point("model.language_loss")
class LanguageLoss(Checked, nn.Module):
    """Cross-entropy over supervised rows only.

    Args:
        label_smoothing: share of each target that is spread over the whole vocabulary, 0 to 1.
    """

    def __init__(self, label_smoothing: UnitInterval = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
        """Hidden states (S, D) and the head, targets (S,) int64 and weights (S,) to the weighted sum, a float32 scalar.

        Computed in float32 from the head's logits. S may be zero: gradients are then zero, not missing.
        """
        losses = F.cross_entropy(head(hidden).float(), targets, reduction="none", label_smoothing=self.label_smoothing)
        return (losses * weights).sum()


@register
class ChunkedLanguageLoss(LanguageLoss):
    """The same numbers and gradients with the logits of some rows at a time; they are computed again on the way back.

    For large vocabularies: 16,000 rows of 151,936 logits are 9 GiB in float32 alone. Takes the time of one more pass
    through the language head.

    Args:
        chunk_size: rows whose logits are held together.
        label_smoothing: of the targets, 0 to 1.
    """

    def __init__(self, chunk_size: PositiveInt = 1024, label_smoothing: UnitInterval = 0.0) -> None:
        super().__init__(label_smoothing)
        self.chunk_size = chunk_size

    def forward(self, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
        plain = super().forward
        rows = (tensor.split(self.chunk_size) for tensor in (hidden, targets, weights))
        parts = [
            checkpoint(plain, states, head, wanted, weight, use_reentrant=False)
            for states, wanted, weight in zip(*rows, strict=True)
        ]
        return torch.stack(parts).sum()


@register
class LigerLanguageLoss(LanguageLoss):
    """Liger's fused language head and cross-entropy: no logits are held, gradients are made on the way forth.

    For CUDA, with the package `liger-kernel`. Rows of equal weight are one call, each with a gradient of the head's
    own size; a batch has as many weights as samples are weighed differently (`mask_sample_weight`), so one or two.
    Unlike the other losses it does not call the head but takes its weight, so hooks on the head do not run.

    Args:
        label_smoothing: of the targets, 0 to 1.
    """

    def forward(self, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
        """As `LanguageLoss`.

        Raises:
            SailUsageError: no CUDA or no Liger, or a language head that is not one whole, plain `nn.Linear`.
        """
        if not hidden.is_cuda:
            raise SailUsageError(f"LigerLanguageLoss needs CUDA, not {hidden.device.type}; use ChunkedLanguageLoss")
        loss, linear = _liger(self.label_smoothing), _linear(head)
        if not len(hidden):
            return head(hidden).float().sum()  # the kernels take no empty input
        total = hidden.new_zeros((), dtype=torch.float32)
        for weight in weights.unique().tolist():
            rows = (weights == weight).nonzero()[:, 0]
            total = total + weight * loss(linear.weight, hidden[rows], targets[rows], linear.bias)
        return total


def _liger(label_smoothing: float) -> Callable[..., Tensor]:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError as error:
        absent = (error.name or "").startswith("liger_kernel")
        told = "needs liger-kernel, which is not installed" if absent else f"cannot import Liger ({error})"
        mend = "pip install 'sail-lightning[liger]', or use ChunkedLanguageLoss"
        raise SailUsageError(f"LigerLanguageLoss {told}: {mend}") from None
    # Sums: with a loss for each row Liger computes all logits a second time on the way back.
    return LigerFusedLinearCrossEntropyLoss(label_smoothing=label_smoothing, reduction="sum", accum_dtype=torch.float32)


def _linear(head: Head) -> nn.Linear:
    """The matrix behind a head: the head itself, or `lm_head` of the backbone whose method it is."""
    linear = head if isinstance(head, nn.Module) else getattr(getattr(head, "__self__", None), "lm_head", None)
    if type(linear) is not nn.Linear:
        kind = type(head if linear is None else linear).__name__
        raise SailUsageError(
            f"LigerLanguageLoss needs a plain nn.Linear as lm_head, not {kind}; use ChunkedLanguageLoss"
        )
    if isinstance(linear.weight, DTensor):
        raise SailUsageError(
            "LigerLanguageLoss needs the whole language head, but its weight is sharded; use ChunkedLanguageLoss"
        )
    return linear


@dataclass(frozen=True)
class MaskLossSums:
    """Sums over masks of the weighted binary cross-entropy and dice losses, float32 scalars."""

    bce: Tensor
    dice: Tensor


@register
@swap_point("model.mask_loss")
class MaskLoss(Checked, nn.Module):
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
        bce_weight: NonNegativeFloat = 2.0,
        dice_weight: NonNegativeFloat = 0.5,
        num_points: NonNegativeInt = 12544,
        oversample_ratio: OneOrMore = 3.0,
        importance_ratio: UnitInterval = 0.75,
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
    """Bilinear values of maps (n, h, w) at points (n, K, 2), (x, y) in [0, 1], zero outside: (n, K).

    By `grid_sample`, unless torch is told to be deterministic: on CUDA it has no gradient that sums in a fixed order.
    """
    if torch.are_deterministic_algorithms_enabled():
        return gather_points(maps, points)
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def gather_points(maps: Tensor, points: Tensor) -> Tensor:
    """As `sample_points`, by indexing, which in deterministic mode has a gradient that sums in a fixed order.

    Five to ten times slower on the CPU, where 12,544 points take about a millisecond, forward and back.
    """
    count, height, width = maps.shape
    values = maps.flatten()
    start = torch.arange(count, device=maps.device)[:, None] * (height * width)
    # Pixel centres are whole numbers.
    x, y = (points * points.new_tensor([width, height]) - 0.5).unbind(-1)
    left, top = x.floor(), y.floor()
    total = maps.new_zeros(points.shape[:2])
    for row, down in ((top, top + 1 - y), (top + 1, y - top)):
        for column, across in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = start + row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            total = total + values[pixel] * (down * across * inside)
    return total


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


@swap_point("model.distillation_loss")
class DistillationLoss(Checked, ABC, nn.Module):
    """How far a student's projected features are from a teacher's. Computed in float32 on the student's grid."""

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student (B, C, h, w) and teacher (B, C, h', w') to a loss per picture, (B,)."""


@register
class MSEDistillation(DistillationLoss):
    """Mean squared difference; the teacher is resized bilinearly to the student's grid (official form)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.float() - _on_grid(teacher, student)).square().mean((1, 2, 3))


@register
class CosineDistillation(DistillationLoss):
    """One minus the cosine of the angle between both features, mean over the student's grid: 0 to 2, blind to length.

    Not in the paper; of use where a teacher's features differ much in length from place to place.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student.float(), _on_grid(teacher, student), dim=1).mean((1, 2))


def _on_grid(teacher: Tensor, student: Tensor) -> Tensor:
    """A teacher's features (B, C, h', w') on a student's grid, float32."""
    return F.interpolate(teacher.float(), student.shape[-2:], mode="bilinear", align_corners=False)


def _by_shape(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Joins pictures of equal shapes, so that a batch of equal pictures is one call."""
    groups: dict[tuple[torch.Size, torch.Size], tuple[list[Tensor], list[Tensor]]] = {}
    for predicted, wanted in zip(logits, targets, strict=True):
        key = (predicted.shape[-2:], wanted.shape[-2:])
        group = groups.setdefault(key, ([], []))
        group[0].append(predicted)
        group[1].append(wanted)
    return [(torch.cat(a), torch.cat(b)) for a, b in groups.values()]
