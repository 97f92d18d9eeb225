"""The sums of referring segmentation: what one expression adds to them, and the metrics computed from them.

`segmentation` defines the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch

from sail_lightning.evaluate.fixed_point import mean, ratio, to_fixed_point
from sail_lightning.evaluate.metrics.masks import Masks, as_masks, as_pair
from sail_lightning.evaluate.rules import Combine

THRESHOLDS = (5, 6, 7, 8, 9)
"""The thresholds X of Pr@X in tenths, as whole numbers, so that an IoU of exactly 0.7 passes 0.7."""
PRECISIONS = tuple(f"pr@0.{tenths}" for tenths in THRESHOLDS)
"""Names of the metrics Pr@X."""


FIELDS = (
    *("intersection", "union", "iou_units", "count"),
    *("no_target", "no_target_hits", "targeted", "target_hits", "missing"),
    *(f"pass_{tenths}" for tenths in THRESHOLDS),
)
"""Names of the sums; every metric of this module is a quotient of two of them."""


def score_expression(
    pred: Masks,
    target: Masks,
    ignore: Masks | None = None,
    *,
    combine: Combine = "union",
    no_target_text: bool | None = None,
) -> dict[str, int]:
    """Returns what one expression adds to each of `FIELDS`; fields left out get 0.

    Args:
        pred: Predicted masks (n, H, W) bool, in order; n = 0 is a missing prediction and is scored as an empty mask.
        target: True masks (m, H, W) bool, of which the union counts; m = 0, or all empty, is a no-target expression.
        ignore: Pixels that count nowhere, (H, W) bool.
        combine: Whether the `union` of the predicted masks counts, or only the `first`.
        no_target_text: Whether the answer's text says that there is no target; None reads it from the mask.

    Raises:
        TypeError: Masks are not bool.
        ValueError: The shapes do not match.
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
            "iou_units": to_fixed_point(hit),
            "count": 1,
            "no_target": 1,
            "no_target_hits": hit,
        }
    if says_none:
        intersection = 0
    return {
        "intersection": intersection,
        "union": union,
        "iou_units": to_fixed_point(Fraction(intersection, union)),
        "count": 1,
        "targeted": 1,
        "target_hits": int(not says_none),
        "missing": int(not len(masks)),
        **{f"pass_{tenths}": int(10 * intersection >= tenths * union) for tenths in THRESHOLDS},
    }


def score_pairs(pred: Masks, target: Masks, ignore: Masks | None = None) -> list[dict[str, int]]:
    """Returns what an answer to visual-text referring adds to the sums, a row per true mask.

    The i-th predicted mask (n, H, W) belongs to the i-th true one (m, H, W). A missing prediction is an empty mask;
    predictions beyond the last true mask are not scored. Without true masks the answer is one no-target expression.
    """
    masks, truth = as_pair(pred, target)
    if not len(truth):
        return [score_expression(masks, truth, ignore)]
    return [score_expression(masks[i : i + 1], truth[i : i + 1], ignore) for i in range(len(truth))]


def compute_metrics(total: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `ciou giou n_acc t_acc pr@0.5 ... pr@0.9` of sums (numbers or arrays), in [0, 1], NaN where there was
    nothing to judge."""
    nothing = float("nan") if isinstance(total["count"], int) and not total["count"] else 1.0
    values = {
        "ciou": ratio(total["intersection"], total["union"], empty=nothing),
        "giou": mean(total["iou_units"], total["count"]),
        "n_acc": ratio(total["no_target_hits"], total["no_target"]),
        "t_acc": ratio(total["target_hits"], total["targeted"]),
    }
    passed = (ratio(total[f"pass_{tenths}"], total["targeted"]) for tenths in THRESHOLDS)
    return values | dict(zip(PRECISIONS, passed, strict=True))
