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

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from sail_lightning.metrics.masks import Masks, as_masks, as_pair
from sail_lightning.metrics.sums import Sums, mean, ratio, scalar, to_units

THRESHOLDS = (5, 6, 7, 8, 9)
"""X of Pr@X, in tenths: whole numbers, so that an IoU of exactly 0.7 passes 0.7."""
PRECISIONS = tuple(f"pr@0.{tenths}" for tenths in THRESHOLDS)
"""Keys of Pr@X."""


class ReferringSegmentation(Sums):
    """cIoU, gIoU, N-acc, T-acc and Pr@X; definitions in the module's docstring.

    `combine` says what an answer with several masks predicts: their `union`, or only the `first` (the rule of the
    official RefCOCO script). `no_target_from` says what answers "no target": an empty `mask` (also no mask at all), or
    the `text`, which `update` is then told by `no_target_text`. The true masks of an expression are always united.
    """

    fields = (
        *("intersection", "union", "iou_units", "count"),
        *("no_target", "no_target_hits", "target_hits", "missing"),
        *(f"pass_{tenths}" for tenths in THRESHOLDS),
    )

    def __init__(
        self, combine: Literal["union", "first"] = "union", no_target_from: Literal["mask", "text"] = "mask"
    ) -> None:
        super().__init__()
        if combine not in ("union", "first"):
            raise ValueError(f"combine must be union or first, not {combine!r}")
        if no_target_from not in ("mask", "text"):
            raise ValueError(f"no_target_from must be mask or text, not {no_target_from!r}")
        self.combine = combine
        self.no_target_from = no_target_from

    def update(
        self, pred: Masks, target: Masks, ignore: Masks | None = None, *, no_target_text: bool | None = None
    ) -> None:
        """Adds one expression.

        Args:
            pred: predicted masks (n, H, W) bool, in order; n = 0 is a missing prediction and scored as an empty mask.
            target: true masks (m, H, W) bool; m = 0, or all empty, is a no-target expression.
            ignore: (H, W) bool, pixels that count nowhere.
            no_target_text: whether the answer's text says that there is no target; needed (and used) only by
                `no_target_from="text"`.

        Raises:
            TypeError: masks that are not bool.
            ValueError: shapes that do not fit, or `no_target_text` needed but not given.
        """
        masks, truth = as_pair(pred, target)
        predicted = (masks[:1] if self.combine == "first" else masks).any(0)
        true = truth.any(0)
        if ignore is not None:
            keep = ~as_masks(ignore[None], "ignore")[0].to(true.device)
            if keep.shape != true.shape:
                raise ValueError(f"ignore is {tuple(keep.shape)} but the masks are {tuple(true.shape)} (height, width)")
            predicted, true = predicted & keep, true & keep
        counts = [(predicted & true).sum(), (predicted | true).sum(), predicted.sum(), true.sum()]
        intersection, union, on, wanted = (int(count) for count in torch.stack(counts).tolist())
        if self.no_target_from == "mask":
            says_none = on == 0
        elif no_target_text is None:
            raise ValueError("no_target_from is 'text': pass no_target_text, True where the answer says 'no target'")
        else:
            says_none = no_target_text
        if wanted:
            self._add_targeted(0 if says_none else intersection, union, says_none, not len(masks))
        else:
            self.add(
                union=0 if says_none else union,
                iou_units=to_units(int(says_none)),
                count=1,
                no_target=1,
                no_target_hits=int(says_none),
            )

    def _add_targeted(self, intersection: int, union: int, says_none: bool, missing: bool) -> None:
        passed = {f"pass_{tenths}": int(10 * intersection >= tenths * union) for tenths in THRESHOLDS}
        self.add(
            intersection=intersection,
            union=union,
            iou_units=to_units(Fraction(intersection, union)),
            count=1,
            target_hits=int(not says_none),
            missing=int(missing),
            **passed,
        )

    def compute(self) -> dict[str, Tensor]:
        """`ciou giou n_acc t_acc pr@0.5 ... pr@0.9` in [0, 1], float64, NaN where there was nothing to judge; `count`
        of expressions and `missing` (targeted expressions answered without any mask), int64."""
        total = self.totals()
        count = total["count"]
        targeted = count - total["no_target"]
        values: dict[str, float | int] = {
            "ciou": ratio(total["intersection"], total["union"], empty=1.0 if count else float("nan")),
            "giou": mean(total["iou_units"], count),
            "n_acc": ratio(total["no_target_hits"], total["no_target"]),
            "t_acc": ratio(total["target_hits"], targeted),
        }
        for key, tenths in zip(PRECISIONS, THRESHOLDS, strict=True):
            values[key] = ratio(total[f"pass_{tenths}"], targeted)
        values |= {"count": count, "missing": total["missing"]}
        return {key: scalar(value) for key, value in values.items()}
