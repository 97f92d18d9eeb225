"""Pairs the predicted and true masks of an image one to one."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from sail_lightning.evaluate.metrics.masks import Masks, as_pair


def pairwise_iou(pred: Masks, target: Masks) -> list[list[Fraction]]:
    """Returns the exact IoU of every predicted (n, H, W) with every true (m, H, W) mask, as n rows of m; two empty
    masks have IoU 1."""
    left, right = as_pair(pred, target)
    table: list[list[Fraction]] = []
    for mask in left:
        # One prediction at a time: the whole table at once would take n * m images of memory.
        both = (mask & right).flatten(1).sum(1)
        either = (mask | right).flatten(1).sum(1)
        pairs = torch.stack([both, either], 1).tolist()
        table.append([Fraction(part, whole) if whole else Fraction(1) for part, whole in pairs])
    return table


def greedy_pairs(scores: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Returns one-to-one pairs (row, column) of positive score, chosen greedily, the largest score first."""
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
