"""Metrics of grounded captions (GCG, GLaMM): whether every phrase of the caption comes with the right mask.

Per image, predicted and true masks are paired one to one, greedily, the largest IoU first (ties: the earlier
prediction, then the earlier truth).

    mIoU   = mean over images of the mean IoU of the pairs that overlap at all (0 where there is none)
    recall = pairs with IoU >= 0.5 and text similarity >= 0.5 / true phrases of all images

For recall, pairs below either threshold are removed before pairing, so a good mask under a wrong phrase does not take
the place of another. mIoU counts matched pairs only, as the published protocol does: surplus and unmatched masks do not
lower it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sail_lightning.errors import SailError
from sail_lightning.evaluate.fixed_point import FIXED_POINT_ONE, mean, ratio, to_fixed_point
from sail_lightning.evaluate.metric import SumMetric
from sail_lightning.evaluate.metrics.masks import Masks
from sail_lightning.evaluate.metrics.official import recalled_officially
from sail_lightning.evaluate.metrics.pairing import greedy_pairs, pairwise_iou
from sail_lightning.evaluate.metrics.text import token_f1
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import ProtocolName, Rules, Similarity
from sail_lightning.registry import register
from sail_lightning.settings.ranges import UnitInterval

FIELDS = ("iou_units", "images", "recalled", "phrases")
"""Names of the sums of which both metrics are quotients."""


def check_truth(masks: Masks, phrases: Sequence[str]) -> None:
    """Checks that a true caption has one phrase, of at least one word, per mask.

    Raises:
        SailError: It has not.
    """
    named = sum(bool(phrase.strip()) for phrase in phrases)
    if not named == len(phrases) == len(masks):
        counts = f"{named} phrases but {len(masks)} masks"
        raise SailError(f"a grounded caption's truth has {counts}; write one <p> phrase </p> [SEG] per mask")


def matched_iou(ious: Sequence[Sequence[Fraction]]) -> Fraction:
    """Returns the mean IoU of one image's pairs, in [0, 1], 0 where none overlap."""
    matched = [ious[row][column] for row, column in greedy_pairs(ious)]
    return sum(matched, Fraction(0)) / len(matched) if matched else Fraction(0)


def recalled(
    ious: Sequence[Sequence[Fraction]],
    phrases: Sequence[str],
    true_phrases: Sequence[str],
    similarity: Similarity = token_f1,
    min_iou: float = 0.5,
    min_similarity: float = 0.5,
) -> int:
    """Returns how many true phrases of one image are found: pairs below either threshold are removed, the others
    matched."""

    def admitted(iou: Fraction, phrase: str, target: str) -> Fraction:
        passes = iou >= min_iou and similarity(phrase, target) >= min_similarity
        return iou if passes else Fraction(0)

    table = [
        [admitted(iou, phrase, target) for iou, target in zip(line, true_phrases, strict=True)]
        for line, phrase in zip(ious, phrases, strict=False)
    ]
    return len(greedy_pairs(table))


@register
class GroundedCaption(SumMetric):
    """Mask mIoU and phrase recall of grounded captions, as the module's docstring defines them.

    A predicted mask without a phrase counts for mIoU, not for recall; a phrase without a mask counts for neither. A
    truth that names no phrases counts for masks only.

    Args:
        protocol: Protocol of the evaluation, as in `Rules`.
        similarity: Returns the similarity of a predicted and a true phrase, in [0, 1]. The default is token F1, which
            needs no network; the published recall uses the cosine of BERT embeddings (`similarity.bert_phrases`).
        min_iou: Smallest IoU of a pair that counts as recalled, in [0, 1]; 0.5 in the official protocol.
        min_similarity: Smallest similarity of a pair that counts as recalled, in [0, 1]; 0.5 in the official protocol.
    """

    fields = FIELDS
    takes = "masks"

    def __init__(
        self,
        protocol: ProtocolName = "standard",
        similarity: Similarity = token_f1,
        min_iou: UnitInterval = 0.5,
        min_similarity: UnitInterval = 0.5,
    ) -> None:
        self.rules = Rules(protocol)
        self.similarity = similarity
        self.min_iou, self.min_similarity = min_iou, min_similarity
        super().__init__()

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what one image adds to the sums.

        Raises:
            SailError: The truth does not have one phrase, of at least one word, per mask.
        """
        pred, target, _ = record.masks()
        phrases, true_phrases = record.predicted_phrases, record.true_phrases
        named = bool(true_phrases) or record.reference_phrases is not None
        if named:
            check_truth(target, true_phrases)
        ious = pairwise_iou(pred, target)
        found = 0
        if named and self.rules.official:
            found = recalled_officially(ious, phrases, true_phrases, self.similarity)
        elif named:
            found = recalled(ious, phrases, true_phrases, self.similarity, self.min_iou, self.min_similarity)
        return {
            "iou_units": to_fixed_point(matched_iou(ious)),
            "images": 1,
            "recalled": found,
            "phrases": len(true_phrases),
        }

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `gcg_miou` and `gcg_recall` in [0, 1], NaN without images or without true phrases."""
        return {
            "gcg_miou": mean(sums["iou_units"], sums["images"]),
            "gcg_recall": ratio(sums["recalled"], sums["phrases"]),
        }

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        """Returns `iou` (mean over matched pairs), `recalled` and `phrases` (numbers of true ones), and `masks` (number
        of predicted ones)."""
        score = {"iou": row["iou_units"] / FIXED_POINT_ONE, "recalled": row["recalled"], "phrases": row["phrases"]}
        return score | {"masks": len(record.pred)}

    def counts(self, totals: Mapping[str, int]) -> dict[str, int]:
        """Returns `phrases`, the number of true phrases."""
        return {"phrases": totals["phrases"]}
