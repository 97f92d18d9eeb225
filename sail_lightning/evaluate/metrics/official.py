"""The official code's rules, faults included, where they can change a value (`docs/evaluation.md` lists them).

They serve only for comparison with values that were computed by that code. The numbers of defects (E16 ...) are those
of the project's list of defects.
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
from sail_lightning.settings.renames import renamed

UNION_OF_ONE, UNION_OF_ALL = 1e-5, 1e-10
"""The numbers of pixels added to an expression's union and to the pooled union before division."""
_SKIPS_MISSING: tuple[Kind, ...] = ("reasonseg", "perbench_vres")


def round_trip(values: NDArray[Any]) -> BoolMask:
    """Returns the mask (H, W) bool that remains of integer values (H, W) after the official run-length coding (E16).

    Column by column, the code starts with "off" and toggles at every change of value. A mask of 0 and 1 remains as it
    is. With values {0, 1, 255}, or {0, 1, 2} of summed polygons, a change from 1 to 2 turns "on" into "off".
    """
    scan = np.asarray(values).ravel(order="F")
    changes: BoolMask = np.diff(scan, prepend=scan.dtype.type(0)) != 0
    on: BoolMask = (np.cumsum(changes) % 2 == 1).reshape(np.shape(values), order="F")
    return on


def score_officially(pred: Masks, target: Masks, ignore: Masks | None, kind: Kind) -> dict[str, int]:
    """Returns what one answer adds to each of `expressions.FIELDS` under the official rules.

    Args:
        pred: Predicted masks (n, H, W) bool, of which only the first counts.
        target: True masks (m, H, W) bool, of which the union counts; in visual-text referring only the first counts,
            divided by m (E18).
        ignore: Ignored pixels (H, W) bool, written as 255 into the target, which `round_trip` turns into targets and
            holes (E16).
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
    # The official script fails at a question without a target; here such a question does not count.
    if skipped or not count:
        both, either, iou = 0, 0, 0.0
    return row | {"intersection": both, "union": either, "iou_units": to_fixed_point(iou), "count": count}


def compute_metrics(total: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of `expressions.compute_metrics` with the official pooled union."""
    nothing = isinstance(total["count"], int) and not total["count"]
    pooled = float("nan") if nothing else total["intersection"] / (total["union"] + UNION_OF_ALL)
    return expressions.compute_metrics(total) | {"ciou": pooled}


def recalled_officially(
    ious: Sequence[Sequence[Fraction]], phrases: Sequence[str], true_phrases: Sequence[str], similarity: Similarity
) -> int:
    """Returns how many true phrases of an image are found by the official rule (E22).

    Pairs are taken by IoU alone, and the first one below a threshold ends the search. A mask without a phrase makes the
    official script skip the image, so that nothing is found.
    """
    found = 0
    for row, column in greedy_pairs(ious):
        if row >= len(phrases):
            return 0
        if ious[row][column] < 0.5 or similarity(phrases[row], true_phrases[column]) < 0.5:
            break
        found += 1
    return found


__getattr__ = renamed(__name__, {"figures": "compute_metrics", "judged_officially": "score_officially"})
