"""Grounded captions (GCG, GLaMM): does every phrase of the caption come with the right mask?

Per image, predicted and true masks are paired one to one, greedily, the largest IoU first (ties: the earlier
prediction, then the earlier truth).

    mIoU   = mean over images of the mean IoU of the pairs that overlap at all (0 where there is none)
    recall = pairs with IoU >= 0.5 and text similarity >= 0.5 / true phrases of all images

For recall, pairs that miss either bar are struck out before pairing, so a good mask under a wrong phrase does not end
it. mIoU looks at matched pairs only, as the published protocol does: surplus and unmatched masks cost it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

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


Similarity = Callable[[str, str], float]
"""Of a predicted and a true phrase, to [0, 1]."""
FIELDS = ("iou_units", "images", "recalled", "phrases")
"""The sums of which both figures are quotients."""


def check_truth(masks: Masks, phrases: Sequence[str]) -> None:
    """Raises SailError where a true caption has not one phrase, of at least one word, per mask."""
    named = sum(bool(phrase.strip()) for phrase in phrases)
    if not named == len(phrases) == len(masks):
        counts = f"{named} phrases but {len(masks)} masks"
        raise SailError(f"a grounded caption's truth has {counts}; write one <p> phrase </p> [SEG] per mask")


def matched_iou(ious: Sequence[Sequence[Fraction]]) -> Fraction:
    """The mean IoU of one picture's pairs, 0 where none overlap."""
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
    """How many true phrases of one picture are found: pairs are struck out that miss either bar, then matched."""

    def admitted(iou: Fraction, phrase: str, target: str) -> Fraction:
        passes = iou >= min_iou and similarity(phrase, target) >= min_similarity
        return iou if passes else Fraction(0)

    table = [
        [admitted(iou, phrase, target) for iou, target in zip(line, true_phrases, strict=True)]
        for line, phrase in zip(ious, phrases, strict=False)
    ]
    return len(greedy_pairs(table))


def figures(total: Mapping[str, Any]) -> dict[str, Any]:
    """`gcg_miou` and `gcg_recall` of sums, NaN without images or without true phrases; numbers or arrays."""
    return {
        "gcg_miou": mean(total["iou_units"], total["images"]),
        "gcg_recall": ratio(total["recalled"], total["phrases"]),
    }


class GroundedCaption(Sums):
    """Mask mIoU and phrase recall of grounded captions; definitions in the module's docstring.

    `similarity` compares a predicted with a true phrase. The default is token F1, which needs no network; the published
    figures use the cosine of BERT embeddings (`metrics.similarity`).
    """

    fields = FIELDS

    def __init__(self, similarity: Similarity = token_f1, min_iou: float = 0.5, min_similarity: float = 0.5) -> None:
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
        check_truth(target_masks, target_phrases)
        ious = pairwise_iou(pred_masks, target_masks)
        bars = (self.min_iou, self.min_similarity)
        self.add(
            iou_units=to_units(matched_iou(ious)),
            images=1,
            recalled=recalled(ious, pred_phrases, target_phrases, self.similarity, *bars),
            phrases=len(target_phrases),
        )

    def compute(self) -> dict[str, Tensor]:
        """`gcg_miou` and `gcg_recall` in [0, 1], NaN without images or without true phrases."""
        return {key: scalar(value) for key, value in figures(self.totals()).items()}
