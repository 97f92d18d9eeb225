"""The official code's rules, faults included, where they can change a number (`docs/evaluation.md` lists them).

Only for comparison with numbers that were made by that code. Numbers of a defect (E16 ...) are those of the project's
list of defects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sail_lightning.evaluate.benchmarks import Kind
from sail_lightning.evaluate.fixed_point import to_fixed_point
from sail_lightning.evaluate.metrics import expressions
from sail_lightning.evaluate.metrics.expressions import score_expression
from sail_lightning.evaluate.metrics.masks import Masks
from sail_lightning.evaluate.metrics.pairing import greedy_pairs
from sail_lightning.evaluate.rules import Similarity
from sail_lightning.sample import BoolMask

UNION_OF_ONE, UNION_OF_ALL = 1e-5, 1e-10
"""What is added to an expression's union and to the pooled union before dividing."""
_SKIPS_MISSING: tuple[Kind, ...] = ("reasonseg", "perbench_vres")


def round_trip(values: NDArray[Any]) -> BoolMask:
    """What is left of a mask (H, W) of any values after the official run-length coding: E16.

    Column by column, the code starts off and toggles at every change of value. Of 0 and 1 that is the mask itself. Of
    {0, 1, 255} or of summed polygons {0, 1, 2} a change from 1 to 2 turns "on" into "off", and back again.
    """
    scan = np.asarray(values).ravel(order="F")
    changes: BoolMask = np.diff(scan, prepend=scan.dtype.type(0)) != 0
    on: BoolMask = (np.cumsum(changes) % 2 == 1).reshape(np.shape(values), order="F")
    return on


def score_officially(pred: Masks, target: Masks, ignore: Masks | None, kind: Kind) -> dict[str, int]:
    """What one answer adds to the fields of `expressions.FIELDS`.

    Args:
        pred: masks (n, H, W), of which only the first counts.
        target: masks (m, H, W), united; of visual-text referring only the first counts, divided by m (E18).
        ignore: (H, W), written as 255 into the target, which the round trip turns into targets and holes (E16).
        kind: `reasonseg` and `perbench_vres` leave a missing prediction out of the pooled sums (E17).
    """
    count = 1
    if kind == "perbench_vres":
        count, target = len(target), target[:1]
    true: BoolMask = np.asarray(target.any(0))
    if ignore is not None:
        true = round_trip(np.where(ignore, 255, true))
    row = score_expression(pred, true[None], combine="first")
    both, either = row.get("intersection", 0), row["union"]
    iou = both / (either + UNION_OF_ONE) + (either == 0)
    skipped = not len(pred) and kind in _SKIPS_MISSING
    # A question without a target ends the official script; here it counts nowhere.
    if skipped or not count:
        both, either, iou = 0, 0, 0.0
    return row | {"intersection": both, "union": either, "iou_units": to_fixed_point(iou), "count": count}


def compute_metrics(total: Mapping[str, Any]) -> dict[str, Any]:
    """`expressions.compute_metrics` with the official pooled union."""
    nothing = isinstance(total["count"], int) and not total["count"]
    pooled = float("nan") if nothing else total["intersection"] / (total["union"] + UNION_OF_ALL)
    return expressions.compute_metrics(total) | {"ciou": pooled}


def recalled_officially(
    ious: Sequence[Sequence[Fraction]], phrases: Sequence[str], true_phrases: Sequence[str], similarity: Similarity
) -> int:
    """How many true phrases of an image are found: E22.

    Pairs are taken by IoU alone, and the first that misses a bar ends the search. A mask without a phrase makes the
    official script skip the image: nothing is found.
    """
    found = 0
    for row, column in greedy_pairs(ious):
        if row >= len(phrases):
            return 0
        if ious[row][column] < 0.5 or similarity(phrases[row], true_phrases[column]) < 0.5:
            break
        found += 1
    return found
