"""Grounded captions (GCG, GLaMM): does every phrase of the caption come with the right mask?

Per image, predicted and true masks are paired one to one, greedily, the largest IoU first (ties: the earlier
prediction, then the earlier truth).

    mIoU   = mean over images of the mean IoU of the pairs that overlap at all (0 where there is none)
    recall = pairs with IoU >= 0.5 and text similarity >= 0.5 / true phrases of all images

For recall, pairs that miss either bar are struck out before pairing, so a good mask under a wrong phrase does not end
it. mIoU looks at matched pairs only, as the published protocol does: surplus and unmatched masks cost it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.metrics.masks import Masks, as_pair
from sail_lightning.metrics.sums import Sums, mean, ratio, scalar, to_units
from sail_lightning.metrics.text import token_f1


def pairwise_iou(pred: Masks, target: Masks) -> list[list[Fraction]]:
    """IoU of every predicted (n, H, W) with every true (m, H, W) mask, n rows of m; 1 for two empty masks."""
    left, right = as_pair(pred, target)
    table: list[list[Fraction]] = []
    for mask in left:
        # One prediction at a time: the whole table at once would take n * m pictures of memory.
        both = (mask & right).flatten(1).sum(1)
        either = (mask | right).flatten(1).sum(1)
        pairs = torch.stack([both, either], 1).tolist()
        table.append([Fraction(part, whole) if whole else Fraction(1) for part, whole in pairs])
    return table


def greedy_pairs(scores: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of positive score, the largest first."""
    order = sorted(
        ((score, row, column) for row, line in enumerate(scores) for column, score in enumerate(line) if score > 0),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    rows: set[int] = set()
    columns: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for _, row, column in order:
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
            pairs.append((row, column))
    return pairs


class GroundedCaption(Sums):
    """Mask mIoU and phrase recall of grounded captions; definitions in the module's docstring.

    `similarity` compares a predicted with a true phrase, to [0, 1]. The default is token F1, which needs no network;
    the published figures use the cosine of BERT embeddings.
    """

    fields = ("iou_units", "images", "recalled", "phrases")

    def __init__(
        self, similarity: Callable[[str, str], float] = token_f1, min_iou: float = 0.5, min_similarity: float = 0.5
    ) -> None:
        super().__init__()
        self.similarity = similarity
        self.min_iou = min_iou
        self.min_similarity = min_similarity

    def update(
        self, pred_masks: Masks, pred_phrases: Sequence[str], target_masks: Masks, target_phrases: Sequence[str]
    ) -> None:
        """Adds one image: predicted (n, H, W) and true (m, H, W) masks, bool, with their phrases in the same order.

        A predicted mask without a phrase counts for mIoU, not for recall; a phrase without a mask counts for neither.

        Raises:
            SailError: the truth has not one phrase, of at least one word, per mask.
            TypeError, ValueError: masks that are not bool, or not (n, H, W) of one size.
        """
        named = sum(bool(phrase.strip()) for phrase in target_phrases)
        if not named == len(target_phrases) == len(target_masks):
            counts = f"{named} phrases but {len(target_masks)} masks"
            raise SailError(f"a grounded caption's truth has {counts}; write one <p> phrase </p> [SEG] per mask")
        ious = pairwise_iou(pred_masks, target_masks)
        matched = [ious[row][column] for row, column in greedy_pairs(ious)]
        admitted = [
            [self._admit(iou, phrase, target) for iou, target in zip(line, target_phrases, strict=True)]
            for line, phrase in zip(ious, pred_phrases, strict=False)
        ]
        self.add(
            iou_units=to_units(sum(matched, Fraction(0)) / len(matched)) if matched else 0,
            images=1,
            recalled=len(greedy_pairs(admitted)),
            phrases=len(target_phrases),
        )

    def _admit(self, iou: Fraction, phrase: str, target: str) -> Fraction:
        """The IoU of a pair that passes both bars, else 0."""
        passes = iou >= self.min_iou and self.similarity(phrase, target) >= self.min_similarity
        return iou if passes else Fraction(0)

    def compute(self) -> dict[str, Tensor]:
        """`gcg_miou` and `gcg_recall` in [0, 1], NaN without images or without true phrases."""
        total = self.totals()
        return {
            "gcg_miou": scalar(mean(total["iou_units"], total["images"])),
            "gcg_recall": scalar(ratio(total["recalled"], total["phrases"])),
        }
