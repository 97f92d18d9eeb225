"""Referring segmentation: cIoU, gIoU, N-acc, T-acc and Pr@X (RefCOCO/+/g, gRefCOCO, ReasonSeg).

Definitions, per expression with predicted pixels P and true pixels G, an ignored region taken out of both:

    I = |P and G|,  U = |P or G|,  IoU = I / U, and 1 where U = 0
    cIoU  = sum I / sum U over all expressions (1 where nothing is on anywhere)
    gIoU  = mean IoU over all expressions
    Pr@X  = share of the targeted expressions whose IoU >= X
    N-acc = share of the no-target expressions (G empty) that were answered "no target"
    T-acc = share of the targeted expressions that were not

No-target expressions enter as in gRefCOCO (Liu et al., GRES, CVPR 2023). Answered "no target", one counts 1 in gIoU and
adds nothing to I and U; otherwise it counts 0 in gIoU and adds |P| to U. A targeted expression answered "no target"
counts I = 0. Where the decision is read off the mask, all of that follows from the definitions above; where it is read
off the text, the text overrules the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from sail_lightning.metrics.masks import Masks, as_masks, as_pair
from sail_lightning.metrics.sums import Sums, mean, ratio, scalar, to_units

THRESHOLDS = (5, 6, 7, 8, 9)
"""X of Pr@X, in tenths: whole numbers, so that an IoU of exactly 0.7 passes 0.7."""
PRECISIONS = tuple(f"pr@0.{tenths}" for tenths in THRESHOLDS)
"""Keys of Pr@X."""


Combine = Literal["union", "first"]
"""What an answer with several masks predicts: their union, or only the first (the official RefCOCO script)."""
NoTargetFrom = Literal["mask", "text"]
"""What answers "no target": an empty mask (also no mask at all), or the text."""
FIELDS = (
    *("intersection", "union", "iou_units", "count"),
    *("no_target", "no_target_hits", "targeted", "target_hits", "missing"),
    *(f"pass_{tenths}" for tenths in THRESHOLDS),
)
"""The sums of which every figure here is a quotient."""


def judged(
    pred: Masks,
    target: Masks,
    ignore: Masks | None = None,
    *,
    combine: Combine = "union",
    no_target_text: bool | None = None,
) -> dict[str, int]:
    """What one expression adds to each of `FIELDS`; those left out get nothing.

    Args:
        pred: predicted masks (n, H, W) bool, in order; n = 0 is a missing prediction and scored as an empty mask.
        target: true masks (m, H, W) bool, united; m = 0, or all empty, is a no-target expression.
        ignore: (H, W) bool, pixels that count nowhere.
        combine: several predicted masks.
        no_target_text: whether the answer's text says that there is no target; None reads it off the mask.

    Raises:
        TypeError: masks that are not bool.
        ValueError: shapes that do not fit.
    """
    masks, truth = as_pair(pred, target)
    predicted = (masks[:1] if combine == "first" else masks).any(0)
    true = truth.any(0)
    if ignore is not None:
        keep = ~as_masks(ignore[None], "ignore")[0].to(true.device)
        if keep.shape != true.shape:
            raise ValueError(f"ignore is {tuple(keep.shape)} but the masks are {tuple(true.shape)} (height, width)")
        predicted, true = predicted & keep, true & keep
    counts = [(predicted & true).sum(), (predicted | true).sum(), predicted.sum(), true.sum()]
    intersection, union, on, wanted = (int(count) for count in torch.stack(counts).tolist())
    says_none = on == 0 if no_target_text is None else no_target_text
    if not wanted:
        hit = int(says_none)
        return {
            "union": 0 if says_none else union,
            "iou_units": to_units(hit),
            "count": 1,
            "no_target": 1,
            "no_target_hits": hit,
        }
    if says_none:
        intersection = 0
    return {
        "intersection": intersection,
        "union": union,
        "iou_units": to_units(Fraction(intersection, union)),
        "count": 1,
        "targeted": 1,
        "target_hits": int(not says_none),
        "missing": int(not len(masks)),
        **{f"pass_{tenths}": int(10 * intersection >= tenths * union) for tenths in THRESHOLDS},
    }


def judged_each(pred: Masks, target: Masks, ignore: Masks | None = None) -> list[dict[str, int]]:
    """What an answer adds whose i-th mask belongs to the i-th true one (visual-text referring), a row per true mask.

    A missing prediction is an empty mask; predictions beyond the last true mask are not scored. Without true masks the
    answer is one no-target expression.
    """
    masks, truth = as_pair(pred, target)
    if not len(truth):
        return [judged(masks, truth, ignore)]
    return [judged(masks[i : i + 1], truth[i : i + 1], ignore) for i in range(len(truth))]


def figures(total: Mapping[str, Any]) -> dict[str, Any]:
    """`ciou giou n_acc t_acc pr@0.5 ... pr@0.9` of sums, NaN where there was nothing to judge; numbers or arrays."""
    nothing = float("nan") if isinstance(total["count"], int) and not total["count"] else 1.0
    values = {
        "ciou": ratio(total["intersection"], total["union"], empty=nothing),
        "giou": mean(total["iou_units"], total["count"]),
        "n_acc": ratio(total["no_target_hits"], total["no_target"]),
        "t_acc": ratio(total["target_hits"], total["targeted"]),
    }
    passed = (ratio(total[f"pass_{tenths}"], total["targeted"]) for tenths in THRESHOLDS)
    return values | dict(zip(PRECISIONS, passed, strict=True))


class ReferringSegmentation(Sums):
    """cIoU, gIoU, N-acc, T-acc and Pr@X; definitions in the module's docstring.

    With `no_target_from="text"`, `update` is told by `no_target_text` what the text says. The true masks of an
    expression are always united.
    """

    fields = FIELDS

    def __init__(self, combine: Combine = "union", no_target_from: NoTargetFrom = "mask") -> None:
        super().__init__()
        if combine not in ("union", "first"):
            raise ValueError(f"combine must be union or first, not {combine!r}")
        if no_target_from not in ("mask", "text"):
            raise ValueError(f"no_target_from must be mask or text, not {no_target_from!r}")
        self.combine: Combine = combine
        self.no_target_from: NoTargetFrom = no_target_from

    def update(
        self, pred: Masks, target: Masks, ignore: Masks | None = None, *, no_target_text: bool | None = None
    ) -> None:
        """Adds one expression; arguments as `judged`. `no_target_text` is needed (and used) only by
        `no_target_from="text"`.

        Raises:
            TypeError: masks that are not bool.
            ValueError: shapes that do not fit, or `no_target_text` needed but not given.
        """
        if self.no_target_from == "mask":
            no_target_text = None
        elif no_target_text is None:
            raise ValueError("no_target_from is 'text': pass no_target_text, True where the answer says 'no target'")
        self.add(**judged(pred, target, ignore, combine=self.combine, no_target_text=no_target_text))

    def compute(self) -> dict[str, Tensor]:
        """`ciou giou n_acc t_acc pr@0.5 ... pr@0.9` in [0, 1], float64, NaN where there was nothing to judge; `count`
        of expressions and `missing` (targeted expressions answered without any mask), int64."""
        total = self.totals()
        values = figures(total) | {"count": total["count"], "missing": total["missing"]}
        return {key: scalar(value) for key, value in values.items()}


class VisualTextReferring(ReferringSegmentation):
    """The same figures where the i-th predicted mask belongs to the i-th true one: every true mask is an expression."""

    def __init__(self) -> None:
        super().__init__()

    def update(
        self, pred: Masks, target: Masks, ignore: Masks | None = None, *, no_target_text: bool | None = None
    ) -> None:
        """Adds one answer, as `judged_each`; a text decides nothing here."""
        for row in judged_each(pred, target, ignore):
            self.add(**row)
