"""AP50 and AP of the masks of grounded captions, by pycocotools' COCOeval: one category, every mask of score 1.

COCOeval ranks masks by score. Here all are equal, so masks are ranked by picture, pictures by name (whole numbers by
their value, as COCOeval ranks image ids), and within a
picture as the caption names them: the figure depends on the names (not on the order in which pictures come), and
compares only between answers to the same set. Only the first 100 masks of a picture count.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sail_lightning.generation.prediction import encode_rle
from sail_lightning.metrics.lines import Lines
from sail_lightning.metrics.masks import Masks, as_masks
from sail_lightning.metrics.sums import scalar

Rle = dict[str, Any]
Picture = tuple[Sequence[Rle], Sequence[Rle]]
"""Predicted and true masks of a picture as COCO RLE, `counts` text, in the order in which the caption names them."""
MOST = 100
"""Masks of a picture that count."""
KEYS = ("gcg_ap50", "gcg_ap")


@dataclass(frozen=True)
class Matches:
    """What COCOeval matched, with all that its figures are made of.

    `hits` (10, masks) bool: whether a predicted mask hit a true one at IoU 0.5, 0.55 ... 0.95, in ranking order;
    `picture` (masks,) the picture of each, counted from 0; `truths` (pictures,) the number of true masks.
    """

    hits: NDArray[np.bool_]
    picture: NDArray[np.int64]
    truths: NDArray[np.int64]
    figures: dict[str, float]

    def of_draws(self, drawn: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """`gcg_ap50` and `gcg_ap` of other draws of the pictures.

        Args:
            drawn: (rounds, pictures), how often each picture is in.

        Returns:
            arrays (rounds,); NaN for a draw without true masks.
        """
        counts = np.asarray(drawn, np.float64)
        weights, truths = counts[:, self.picture], counts @ self.truths
        ranked = weights.cumsum(1)
        levels = [_average_precision((weights * hit).cumsum(1), ranked, truths) for hit in self.hits]
        return {"gcg_ap50": levels[0], "gcg_ap": np.mean(levels, axis=0)}


def _average_precision(
    hits: NDArray[np.float64], ranked: NDArray[np.float64], truths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """COCO's average precision (rounds,): the mean, over 101 levels of recall, of the best precision at or beyond it.

    `hits` and `ranked` (rounds, masks): of the masks up to each, those that hit, and all; `truths` (rounds,).
    """
    precision = np.divide(hits, ranked, out=np.zeros_like(hits), where=ranked > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.full(len(hits), np.nan)
    for number in np.flatnonzero(truths):
        reached = np.searchsorted(hits[number] / truths[number], np.linspace(0.0, 1.0, 101), side="left")
        values[number] = np.append(best[number], 0.0)[reached].mean()
    return values


def mask_matches(pictures: Sequence[Picture]) -> Matches:
    """Matches the masks of pictures, which are ranked in the order given."""
    truth, found = COCO(), COCO()
    ids = list(range(1, len(pictures) + 1))
    for coco, side in ((found, 0), (truth, 1)):
        records = [
            {"id": 0, "image_id": number, "category_id": 1, "segmentation": rle, "iscrowd": 0, "score": 1.0}
            for number, picture in zip(ids, pictures, strict=True)
            for rle in picture[side]
        ]
        for place, record in enumerate(records, 1):
            record |= {"id": place, "area": 1.0}
        images = [{"id": number, "height": 0, "width": 0} for number in ids]  # the codes bring their sizes
        coco.dataset = {"images": images, "categories": [{"id": 1}], "annotations": records}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        judge = COCOeval(truth, found, "segm")
        judge.params.maxDets = [MOST]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]
    levels = [float(level.mean()) if (level > -1).all() else float("nan") for level in precision[:, :, 0, 0, 0]]
    results = [result for result in judge.evalImgs if result is not None]
    number = {image: place for place, image in enumerate(ids)}
    hits = [np.asarray(result["dtMatches"]) > 0 for result in results]
    return Matches(
        hits=np.concatenate(hits, 1) if hits else np.zeros((len(levels), 0), bool),
        picture=np.array([number[r["image_id"]] for r in results for _ in r["dtIds"]], np.int64),
        truths=np.array([len(masks) for _, masks in pictures], np.int64),
        figures={"gcg_ap50": levels[0], "gcg_ap": float(np.mean(levels))},
    )


def picture_order(name: str) -> tuple[int, int, str, str]:
    """Sorts names of pictures: whole numbers first, by their value, as COCOeval does; then the others, as text."""
    if not (name.isascii() and name.isdecimal()):
        return 1, 0, "", name
    digits = name.lstrip("0")
    return 0, len(digits), digits, name


class MaskAveragePrecision(Lines):
    """`gcg_ap50` and `gcg_ap`; needs all pictures at once, so every rank's masks are gathered, run-length coded."""

    higher_is_better = True

    def update(self, name: str, pred: Masks, target: Masks) -> None:
        """Adds a picture by its name: predicted (n, H, W) and true masks (m, H, W), bool.

        Raises:
            TypeError, ValueError: masks that are not bool, or not (n, H, W).
        """
        self.write([name, _coded(as_masks(pred, "pred")), _coded(as_masks(target, "target"))])

    def compute(self) -> dict[str, Tensor]:
        """Both figures in [0, 1], NaN without true masks."""
        lines = sorted(self.read(), key=lambda line: picture_order(str(line[0])))
        figures = mask_matches([(pred, target) for _, pred, target in lines]).figures
        return {key: scalar(figures[key]) for key in KEYS}


def _coded(masks: Tensor) -> list[Rle]:
    return [encode_rle(mask) for mask in masks.cpu().numpy()]
