"""Metrics of referring segmentation: cIoU, gIoU, N-acc, T-acc and Pr@X (RefCOCO/+/g, gRefCOCO, ReasonSeg).

An expression has predicted pixels P and true pixels G, both without ignored pixels:

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
from typing import Any

from sail_lightning.evaluate.fixed_point import FIXED_POINT_ONE
from sail_lightning.evaluate.metric import SumMetric
from sail_lightning.evaluate.metrics import official
from sail_lightning.evaluate.metrics.expressions import FIELDS, compute_metrics, score_expression, score_pairs
from sail_lightning.evaluate.metrics.text import says_no_target
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Combine, NoTargetFrom, ProtocolName, Rules
from sail_lightning.registry import register
from sail_lightning.settings.renames import renamed


@register
class ReferringSegmentation(SumMetric):
    """cIoU, gIoU, N-acc, T-acc and Pr@X of referring segmentation, as the module's docstring defines them.

    The true masks of an expression are always united. Under the official protocol, `official.score_officially` scores
    the answers.

    Args:
        protocol: As in `Rules`.
        no_target_from: As in `Rules`.
        combine: As in `Rules`.
    """

    fields = FIELDS
    takes = "masks"

    def __init__(
        self,
        protocol: ProtocolName = "standard",
        no_target_from: NoTargetFrom = "mask",
        combine: Combine | None = None,
    ) -> None:
        self.rules = Rules(protocol, no_target_from, combine)
        super().__init__()

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what one expression adds to the sums."""
        masks = record.masks()
        if self.rules.official:
            return official.score_officially(*masks, record.kind or "refer")
        by_text = says_no_target(record.prediction) if self.rules.no_target_from == "text" else None
        return score_expression(*masks, combine=self.rules.combine or "union", no_target_text=by_text)

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `ciou giou n_acc t_acc pr@0.5 ... pr@0.9` in [0, 1], NaN where there was nothing to judge."""
        return official.compute_metrics(sums) if self.rules.official else compute_metrics(sums)

    def counts(self, totals: Mapping[str, int]) -> dict[str, int]:
        """Returns the numbers of expressions, of those without a target, of missing predictions and of pooled
        pixels."""
        named = {"expressions": totals["count"]}
        return named | {name: totals[name] for name in ("no_target", "missing", "intersection", "union")}

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        """Returns an answer's own scores.

        These are `iou`, `intersection` and `union` in pixels, `no_target` (the truth is empty), the answer's decisions
        `no_target_mask` and `no_target_text`, `missing` (no predicted mask for a target) and `masks` (how many were
        predicted).
        """
        by_mask = row
        if self.rules.no_target_from == "text":
            by_mask = score_expression(*record.masks(), combine=self.rules.combine or "union")
        targeted = row.get("targeted", 0) > 0
        says_none = not by_mask.get("target_hits", 0) if targeted else by_mask.get("no_target_hits", 0) > 0
        return {
            "iou": row["iou_units"] / FIXED_POINT_ONE / max(1, row["count"]),
            "intersection": row.get("intersection", 0),
            "union": row["union"],
            "no_target": not targeted,
            "no_target_mask": says_none,
            "no_target_text": says_no_target(record.prediction),
            "missing": row.get("missing", 0) > 0,
            "masks": len(record.pred),
        }


@register
class VisualTextReferring(ReferringSegmentation):
    """The metrics of referring segmentation for visual-text referring, where every true mask is an expression.

    The i-th predicted mask belongs to the i-th true one. Masks are not united, and the text does not decide whether
    there is a target.
    """

    def __init__(self, protocol: ProtocolName = "standard") -> None:
        super().__init__(protocol)

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what the expressions of one answer add to the sums."""
        if self.rules.official:
            return official.score_officially(*record.masks(), "perbench_vres")
        rows = score_pairs(*record.masks())
        return {name: sum(row.get(name, 0) for row in rows) for name in FIELDS}

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        """Returns the scores of `ReferringSegmentation`, and for several true masks `ious`, the IoU of each."""
        found = super().sample(record, row)
        if not self.rules.official and len(record.target) > 1:
            found["ious"] = [one["iou_units"] / FIXED_POINT_ONE for one in score_pairs(*record.masks())]
        return found


__getattr__ = renamed(
    __name__,
    {
        "figures": "sail_lightning.evaluate.metrics.expressions:compute_metrics",
        "judged": "sail_lightning.evaluate.metrics.expressions:score_expression",
        "judged_each": "sail_lightning.evaluate.metrics.expressions:score_pairs",
    },
)
