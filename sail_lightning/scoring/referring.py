"""Referring segmentation, gRefCOCO, ReasonSeg and visual-text referring, answer by answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sail_lightning.metrics import segmentation
from sail_lightning.metrics.segmentation import judged, judged_each
from sail_lightning.metrics.sums import UNIT
from sail_lightning.metrics.text import says_no_target
from sail_lightning.scoring import official
from sail_lightning.scoring.benchmarks import Kind
from sail_lightning.scoring.parts import Options, SumsPart
from sail_lightning.scoring.record import Answer


def referring(answers: Sequence[Answer], options: Options, kind: Kind) -> SumsPart:
    """`ciou giou n_acc t_acc pr@0.5 ... pr@0.9`.

    Each answer's score holds `iou`, `intersection` and `union` (pixels), `no_target` (nothing is meant), both decisions
    (`no_target_mask`, `no_target_text`), `missing` (no mask where one is meant) and `masks` (how many were predicted).
    """
    rows, samples = [], []
    for answer in answers:
        row, sample = _one(answer, options, kind)
        rows.append(row)
        samples.append(sample)
    figures = official.figures if options.official else segmentation.figures
    return SumsPart.of(segmentation.FIELDS, rows, figures, samples, _counts)


def _counts(total: dict[str, int]) -> dict[str, int]:
    named = {"expressions": total["count"]}
    return named | {name: total[name] for name in ("no_target", "missing", "intersection", "union")}


def _one(answer: Answer, options: Options, kind: Kind) -> tuple[dict[str, int], dict[str, Any]]:
    pred, target, ignore = answer.masks()
    by_text = says_no_target(answer.text)
    each: list[dict[str, int]] | None = None
    if options.official:
        row = official.judged_officially(pred, target, ignore, kind)
    elif kind == "perbench_vres":
        each = judged_each(pred, target, ignore)
        row = {name: sum(one.get(name, 0) for one in each) for name in segmentation.FIELDS}
    else:
        row = judged(pred, target, ignore, combine=options.combine)
    sample = _sample(row, by_text, len(pred))
    if each is not None and len(each) > 1:
        sample["ious"] = [one["iou_units"] / UNIT for one in each]
    if options.no_target_from == "text" and not options.official and kind != "perbench_vres":
        row = judged(pred, target, ignore, combine=options.combine, no_target_text=by_text)
        decisions = {key: sample[key] for key in ("no_target_mask", "no_target_text")}
        sample = _sample(row, by_text, len(pred)) | decisions
    return row, sample


def _sample(row: Mapping[str, int], by_text: bool, masks: int) -> dict[str, Any]:
    """An answer's score; `row` was decided by mask."""
    targeted = row.get("targeted", 0) > 0
    return {
        "iou": row["iou_units"] / UNIT / max(1, row["count"]),
        "intersection": row.get("intersection", 0),
        "union": row["union"],
        "no_target": not targeted,
        "no_target_mask": not row.get("target_hits", 0) if targeted else row.get("no_target_hits", 0) > 0,
        "no_target_text": by_text,
        "missing": row.get("missing", 0) > 0,
        "masks": masks,
    }
