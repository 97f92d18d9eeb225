"""AP50 and AP of the masks of grounded captions, by pycocotools' COCOeval: one category, every mask of score 1.

COCOeval ranks masks by score. Here all are equal, so masks are ranked by image, images by name (whole numbers by their
value, as COCOeval ranks image ids), and within an image as the caption names them: the value depends on the names (not
on the order in which images come), and compares only between answers to the same set. Only the first 100 masks of an
image count.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sail_lightning.evaluate.metric import GatheredMetric, MetricResult
from sail_lightning.evaluate.metrics.image_order import image_order
from sail_lightning.evaluate.metrics.masks import Masks, as_masks
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.image.run_lengths import encode_rle
from sail_lightning.registry import register
from sail_lightning.settings.renames import renamed

Rle = dict[str, Any]
Image = tuple[Sequence[Rle], Sequence[Rle]]
"""Predicted and true masks of an image as COCO RLE with `counts` as text, in the order in which the caption names
them."""
MOST = 100
"""Largest number of masks of an image that count."""


@dataclass(frozen=True)
class Matches(MetricResult):
    """The matches that COCOeval found, from which all its values are computed.

    `hits`, (10, masks) bool in ranking order, says whether a predicted mask hit a true one at IoU 0.5, 0.55 ... 0.95.
    `image`, (masks,) int64, is the index of each mask's image, and `truths`, (images,) int64, the number of true masks.
    """

    hits: NDArray[np.bool_]
    image: NDArray[np.int64]
    truths: NDArray[np.int64]
    values: dict[str, float]

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:  # type: ignore[override]
        """Empty scores, because an image has no average precision of its own."""
        return [{} for _ in self.truths]

    def resampled(self, drawn: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
        """Returns `gcg_ap50` and `gcg_ap` of other draws of the images.

        Args:
            drawn: How often each image is in each draw, (rounds, images).

        Returns:
            Arrays (rounds,) float64 by name, NaN for a draw without true masks.
        """
        counts = np.asarray(drawn, np.float64)
        weights, truths = counts[:, self.image], counts @ self.truths
        ranked = weights.cumsum(1)
        levels = [_average_precision((weights * hit).cumsum(1), ranked, truths) for hit in self.hits]
        return {"gcg_ap50": levels[0], "gcg_ap": np.mean(levels, axis=0)}


def _average_precision(
    hits: NDArray[np.float64], ranked: NDArray[np.float64], truths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns COCO's average precision (rounds,): the mean over 101 levels of recall of the best precision at or beyond
    each.

    `hits` and `ranked`, (rounds, masks), are the numbers of hits and of masks up to each rank; `truths` is (rounds,).
    """
    precision = np.divide(hits, ranked, out=np.zeros_like(hits), where=ranked > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    values = np.full(len(hits), np.nan)
    for number in np.flatnonzero(truths):
        reached = np.searchsorted(hits[number] / truths[number], np.linspace(0.0, 1.0, 101), side="left")
        values[number] = np.append(best[number], 0.0)[reached].mean()
    return values


def mask_matches(images: Sequence[Image]) -> Matches:
    """Matches the predicted with the true masks of images, which are ranked in the order given."""
    truth, found = COCO(), COCO()
    ids = list(range(1, len(images) + 1))
    for data, side in ((found, 0), (truth, 1)):
        records = [
            {"id": 0, "image_id": number, "category_id": 1, "segmentation": rle, "iscrowd": 0, "score": 1.0}
            for number, image in zip(ids, images, strict=True)
            for rle in image[side]
        ]
        for place, record in enumerate(records, 1):
            record |= {"id": place, "area": 1.0}
        sizes = [{"id": number, "height": 0, "width": 0} for number in ids]  # the codes bring their sizes
        data.dataset = {"images": sizes, "categories": [{"id": 1}], "annotations": records}
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
        image=np.array([number[r["image_id"]] for r in results for _ in r["dtIds"]], np.int64),
        truths=np.array([len(masks) for _, masks in images], np.int64),
        values={"gcg_ap50": levels[0], "gcg_ap": float(np.mean(levels))},
    )


@register
class MaskAveragePrecision(GatheredMetric):
    """Average precision of the masks of grounded captions, in [0, 1]: `gcg_ap50` and `gcg_ap`.

    It needs all images at once, so the masks of every rank are gathered as run-length codes. Images are ranked by the
    records' ids, or in the order of the records that `evaluate` gets.
    """

    takes = "masks"

    def entry(self, record: EvalRecord) -> Any:
        """Returns the record's id, and its predicted and true masks as run-length codes."""
        pred, target, _ = record.masks()
        return [record.id, _coded(record.pred, pred), _coded(record.target, target)]

    def order(self, entry: Any) -> Any:
        """Returns the sorting key of an entry: its id, whole numbers first."""
        return image_order(str(entry[0]))

    def evaluate_entries(self, entries: Sequence[Any]) -> Matches:
        """Matches the predicted with the true masks of all images, which are ranked in the order given."""
        return mask_matches([(pred, target) for _, pred, target in entries])


def _coded(masks: Any, pixels: Masks) -> list[Rle]:
    """Returns run-length codes with their counts as text, as COCOeval takes them."""
    if any(isinstance(mask, dict) for mask in masks):
        return [_as_text(mask) if isinstance(mask, dict) else encode_rle(np.asarray(mask)) for mask in masks]
    return [encode_rle(mask) for mask in as_masks(pixels, "masks").cpu().numpy()]


def _as_text(rle: Rle) -> Rle:
    if not isinstance(rle["counts"], list):
        return rle
    return {"size": rle["size"], "counts": coco.frPyObjects(rle, *rle["size"])["counts"].decode("ascii")}


__getattr__ = renamed(__name__, {"picture_order": "sail_lightning.evaluate.metrics.image_order:image_order"})
