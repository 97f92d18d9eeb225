"""Losses. Each returns a sum; `module` alone divides it, by the counts of the whole accumulation window.

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
        label_smoothing: Share of each target that is spread over the whole vocabulary, 0 to 1.
    """

    def __init__(self, label_smoothing: UnitInterval = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
        """Computes the weighted sum over S rows, a float32 scalar, in float32.

        Args:
            hidden: Hidden states (S, D). S may be zero: gradients are then zero, not missing.
            head: The language head.
            targets: Token ids (S,) int64.
            weights: Weights (S,) of the rows.
        """
        losses = F.cross_entropy(head(hidden).float(), targets, reduction="none", label_smoothing=self.label_smoothing)
        return (losses * weights).sum()


@register
class ChunkedLanguageLoss(LanguageLoss):
    """Cross-entropy with the logits of some rows at a time, which are computed again in the backward pass.

    Values and gradients are those of `LanguageLoss`. It is for large vocabularies, where 16,000 rows of 151,936 logits
    take 9 GiB in float32 alone, and takes the time of one more pass through the language head.

    Args:
        chunk_size: Number of rows whose logits are held together.
        label_smoothing: Share of each target that is spread over the whole vocabulary, 0 to 1.
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
    """Liger's fused language head and cross-entropy: no logits are held, gradients come from the forward pass.

    It needs CUDA and the package `liger-kernel`. Rows of equal weight are one call, each with a gradient of the head's
    own size; a batch has one weight, or two where samples with masks weigh otherwise (`mask_sample_weight`).
    Unlike the other losses it does not call the head but takes its weight, so hooks on the head do not run.

    Args:
        label_smoothing: Share of each target that is spread over the whole vocabulary, 0 to 1.
    """

    def forward(self, hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
        """Computes the weighted sum of `LanguageLoss`.

        Raises:
            SailUsageError: There is no CUDA or no Liger, or the language head is not one whole, plain `nn.Linear`.
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
        reason = "needs liger-kernel, which is not installed" if absent else f"cannot import Liger ({error})"
        fix = "pip install 'sail-lightning[liger]', or use ChunkedLanguageLoss"
        raise SailUsageError(f"LigerLanguageLoss {reason}: {fix}") from None
    # A sum, because with a loss per row Liger computes all logits a second time in the backward pass.
    return LigerFusedLinearCrossEntropyLoss(label_smoothing=label_smoothing, reduction="sum", accum_dtype=torch.float32)


def _linear(head: Head) -> nn.Linear:
    """Returns the linear layer of a head: the head itself, or `lm_head` of the backbone that the method belongs to."""
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
    """Binary cross-entropy and dice, on all pixels of small images and on sampled points of large ones.

    Args:
        bce_weight: Weight of the cross-entropy.
        dice_weight: Weight of the dice loss.
        num_points: Points sampled per mask; a target with no more pixels than this, or any where it is 0, is compared
            pixel by pixel.
        oversample_ratio: Candidates per point, 1 or more.
        importance_ratio: Share of the points taken where the prediction is least certain, 0 to 1.
        resolution: The resolution of a comparison pixel by pixel: the `target`'s resolution (logits resized
            bilinearly), or that of the `features` (targets resized to the nearest pixel, the official form
            without points).
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
        """Computes the sums over all masks, from logits (n, h, w) and targets (n, H, W) bool of each image."""
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
    """Computes 1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over the last dimension: (n, K), (n, K) to (n,)."""
    overlap = (probabilities * targets).sum(-1)
    return 1 - (2 * overlap + 1) / (probabilities.sum(-1) + targets.sum(-1) + 1)


def resize(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resizes maps (n, h, w) bilinearly to (n, *size), with `align_corners` off."""
    if maps.shape[0] == 0:
        return maps.new_zeros(0, *size) + maps.sum()
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Samples maps (n, h, w) bilinearly at points (n, K, 2), (x, y) in [0, 1], with zeros outside: (n, K).

    This is `grid_sample`, except in deterministic mode: on CUDA its gradient does not sum in a fixed order.
    """
    if torch.are_deterministic_algorithms_enabled():
        return gather_points(maps, points)
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def gather_points(maps: Tensor, points: Tensor) -> Tensor:
    """Does the same as `sample_points` by indexing, whose gradient sums in a fixed order in deterministic mode.

    It is five to ten times slower on the CPU, where 12,544 points take about a millisecond, forward and backward.
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
    """Draws points (n, num_points, 2) in [0, 1]: the least certain of a uniform draw, and further uniform ones.

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
    """The distance of a student's projected features from a teacher's, in float32 on the student's grid."""

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Computes a loss per image (B,) from features of the student (B, C, h, w) and the teacher (B, C, h', w')."""


@register
class MSEDistillation(DistillationLoss):
    """Mean squared difference; the teacher is resized bilinearly to the student's grid (official form)."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.float() - _on_grid(teacher, student)).square().mean((1, 2, 3))


@register
class CosineDistillation(DistillationLoss):
    """One minus the cosine of the angle between both features, mean over the student's grid: 0 to 2.

    It does not depend on norms, so it helps where those of a teacher's features vary much over an image. It is not in
    the paper.
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(student.float(), _on_grid(teacher, student), dim=1).mean((1, 2))


def _on_grid(teacher: Tensor, student: Tensor) -> Tensor:
    """Resizes a teacher's features (B, C, h', w') to a student's grid, in float32."""
    return F.interpolate(teacher.float(), student.shape[-2:], mode="bilinear", align_corners=False)


def _by_shape(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Joins images of equal shapes, so that a batch of equal images is one call."""
    groups: dict[tuple[torch.Size, torch.Size], tuple[list[Tensor], list[Tensor]]] = {}
    for predicted, wanted in zip(logits, targets, strict=True):
        key = (predicted.shape[-2:], wanted.shape[-2:])
        group = groups.setdefault(key, ([], []))
        group[0].append(predicted)
        group[1].append(wanted)
    return [(torch.cat(a), torch.cat(b)) for a, b in groups.values()]
