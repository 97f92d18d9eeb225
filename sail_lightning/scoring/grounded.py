"""Grounded captions: masks with phrases, and the caption's own words, answer by answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pycocotools import mask as coco

from sail_lightning.errors import SailError
from sail_lightning.metrics import grounded
from sail_lightning.metrics.average_precision import Matches, Picture, Rle, mask_matches
from sail_lightning.metrics.grounded import check_truth, matched_iou, pairwise_iou, recalled
from sail_lightning.metrics.sums import UNIT, to_units
from sail_lightning.scoring.captions import captions
from sail_lightning.scoring.official import recalled_officially
from sail_lightning.scoring.parts import Floats, Options, Part, SumsPart
from sail_lightning.scoring.record import Answer


def grounded_captions(answers: Sequence[Answer], options: Options) -> list[Part]:
    """`gcg_miou gcg_recall gcg_ap50 gcg_ap`, and the figures of `captions` where all answers have a reference.

    Each answer's score holds `iou` (mean over matched pairs), `recalled` and `phrases` (true ones), `masks`
    (predicted). Pictures are ranked for AP in the order of `answers`. A truth that names no phrases at all counts for
    masks alone.
    """
    rows, samples, pictures = [], [], []
    for answer in answers:
        row = _judged(answer, options)
        rows.append(row)
        pictures.append((_coded(answer.pred), _coded(answer.target)))
        score = {"iou": row["iou_units"] / UNIT, "recalled": row["recalled"], "phrases": row["phrases"]}
        samples.append(score | {"masks": len(answer.pred)})
    masks = SumsPart.of(grounded.FIELDS, rows, grounded.figures, samples, lambda total: {"phrases": total["phrases"]})
    parts: list[Part] = [PrecisionPart.of(pictures), masks]
    return [*parts, *(captions(answers, options, "gcg") if all(answer.reference for answer in answers) else [])]


def _judged(answer: Answer, options: Options) -> dict[str, int]:
    pred, target, _ = answer.masks()
    phrases, true_phrases = answer.predicted_phrases, answer.true_phrases
    named = bool(true_phrases) or answer.reference_phrases is not None
    try:
        if named:
            check_truth(target, true_phrases)
    except SailError as error:
        raise SailError(f"{answer.name}: {error}") from None
    ious = pairwise_iou(pred, target)
    find = recalled_officially if options.official else recalled
    return {
        "iou_units": to_units(matched_iou(ious)),
        "images": 1,
        "recalled": find(ious, phrases, true_phrases, options.similarity) if named else 0,
        "phrases": len(true_phrases),
    }


def _coded(rles: Sequence[Rle]) -> list[Rle]:
    """Run-length codes whose counts are text, as COCOeval takes them."""
    return [coco.frPyObjects(rle, *rle["size"]) if isinstance(rle["counts"], list) else rle for rle in rles]


@dataclass(frozen=True)
class PrecisionPart:
    """`gcg_ap50` and `gcg_ap`."""

    matches: Matches
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, pictures: Sequence[Picture]) -> PrecisionPart:
        return cls(mask_matches(pictures), [{} for _ in pictures], {})

    def metrics(self) -> dict[str, float]:
        return self.matches.figures

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        return self.matches.of_draws(drawn)
