"""The metrics against the reference vectors (`eval_vectors.json`, columns `expected*`).

Left out, because they belong to other parts: `AP50` of `gcg_miou_recall_ap50` and the section `preprocessing`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from sail_lightning.evaluate import (
    EvalRecord,
    GroundedCaption,
    Judge,
    MultipleChoiceAccuracy,
    ReferringSegmentation,
    VisualTextReferring,
    parse_choice,
)

FILE = json.loads((Path(__file__).parents[1] / "golden" / "eval_vectors.json").read_text())
VECTORS: dict[str, dict[str, Any]] = {v["name"]: v for v in FILE["vectors"] + FILE["gt_roundtrip_defects"]}


def drawn(rows: list[str], on: str = "1") -> np.ndarray:
    """A mask from row strings: pixels whose character is `on`."""
    return np.array([[char == on for char in row] for row in rows])


def stacked(masks: list[str] | list[list[str]] | None) -> np.ndarray:
    """No mask, one mask or several as (n, H, W) bool."""
    if masks is None:
        return np.zeros((0, 0, 0), bool)
    if isinstance(masks[0], str):
        return drawn(masks)[None]
    return np.stack([drawn(rows) for rows in masks])


def expressions(vector: dict[str, Any]) -> list[dict[str, Any]]:
    return [expression for image in vector["images"] for expression in image]


@pytest.mark.parametrize(
    "name",
    [
        "res_basic",
        "res_no_seg_is_zero_mask",
        "res_first_seg_only",
        "gres_no_target_mask_rule",
        "gres_no_target_explicit_flag",
        "lisa_no_seg_is_skipped",
        "lisa_ignore_255_becomes_foreground",
        "lisa_ignore_255",
    ],
)
def test_referring_segmentation_matches_the_vector(name: str) -> None:
    vector = VECTORS[name]
    flagged = "pred_nt" in expressions(vector)[0]
    metric = ReferringSegmentation(combine="first", no_target_from="text" if flagged else "mask")
    for item in expressions(vector):
        metric.update(
            EvalRecord(
                prediction="No target." if item.get("pred_nt") else "[SEG]",
                pred=stacked(item["pred"]),
                target=drawn(item["gt"])[None],
                ignore=drawn(item["gt"], "x"),
            )
        )
    expected = vector.get("expected_rela") or vector["expected"]
    result, sums = metric.compute(), metric.totals()
    assert (sums["intersection"], sums["union"]) == (expected["I"], expected["U"])
    assert sums["count"] == expected["n"]
    assert float(result["ciou"]) == pytest.approx(expected["cIoU"], abs=1e-11)
    assert float(result["giou"]) == pytest.approx(expected["gIoU"], abs=1e-11)
    if "N_acc" in expected:
        assert float(result["n_acc"]) == pytest.approx(expected["N_acc"], abs=1e-12)
        assert float(result["t_acc"]) == pytest.approx(expected["T_acc"], abs=1e-12)
        assert sums["no_target_hits"] == expected["TP"]
        assert sums["no_target"] - sums["no_target_hits"] == expected["FN"]
        assert sums["target_hits"] == expected["TN"]


@pytest.mark.parametrize("name", ["res_basic", "res_no_seg_is_zero_mask", "gres_no_target_mask_rule"])
def test_the_clean_result_agrees_with_the_official_one_where_the_official_one_is_sound(name: str) -> None:
    vector = VECTORS[name]
    metric = ReferringSegmentation(combine="first")
    for item in expressions(vector):
        metric.update(EvalRecord(pred=stacked(item["pred"]), target=drawn(item["gt"])[None]))
    result = metric.compute()
    assert float(result["ciou"]) == pytest.approx(vector["official"]["cIoU"], abs=1e-4)
    assert float(result["giou"]) == pytest.approx(vector["official"]["gIoU"], abs=1e-4)


def test_overlapping_polygons_are_one_target_and_a_perfect_answer_scores_one() -> None:
    vector = VECTORS["res_overlapping_polygons_gt"]
    parts = coco.frPyObjects(vector["polygons"], *vector["size_hw"])
    truth = coco.decode(parts).transpose(2, 0, 1).astype(bool)
    assert np.array_equal(truth.any(0), drawn(vector["expected"]["gt"]))
    metric = ReferringSegmentation()
    metric.update(EvalRecord(pred=drawn(vector["pred"])[None], target=truth))
    result = metric.compute()
    assert float(result["ciou"]) == vector["expected"]["cIoU"]
    assert float(result["giou"]) == vector["expected"]["gIoU"]
    assert metric.totals()["count"] == vector["expected"]["n"]


def test_visual_text_referring_pairs_masks_in_order_and_scores_every_target() -> None:
    vector = VECTORS["vres_multi_target"]
    metrics = Judge()
    for item in vector["items"]:
        masks, targets = stacked(item["pred_masks_in_SEG_order"]), stacked(item["gt_masks"])
        metrics.update(EvalRecord(pred=masks, target=targets, extra={"task": "vres"}))
    expected = vector["expected"]
    assert metrics.compute() == {"vres_ciou": expected["cIoU"], "vres_giou": expected["gIoU"]}
    (metric,) = (one for one in metrics.logged.values() if isinstance(one, VisualTextReferring))
    assert metric.totals()["count"] == expected["n"]


def test_visual_text_referring_counts_a_missing_prediction_as_an_empty_mask() -> None:
    vector = VECTORS["lisa_no_seg_is_skipped"]
    metrics = Judge()
    for item in expressions(vector):
        masks, targets = stacked(item["pred"]), stacked(item["gt"])
        metrics.update(EvalRecord(pred=masks, target=targets, extra={"task": "vres"}))
    expected = {"vres_ciou": vector["expected"]["cIoU"], "vres_giou": vector["expected"]["gIoU"]}
    assert metrics.compute() == pytest.approx(expected, abs=1e-11)


def test_multiple_choice_matches_the_vector() -> None:
    vector = VECTORS["mcq_substring_accuracy"]
    expected = vector["expected_strict"]
    metric = MultipleChoiceAccuracy()
    for item in vector["items"]:
        metric.update(EvalRecord(prediction=item["pred_answer"], true_answer=item["gt_answer"]))
    assert [parse_choice(item["pred_answer"]) for item in vector["items"]] == expected["parsed"]
    assert (metric.totals()["right"], metric.totals()["count"]) == (expected["correct"], expected["all"])
    assert float(metric.compute()["mcq_accuracy"]) == expected["accuracy"]


def test_grounded_captions_match_the_vector() -> None:
    vector = VECTORS["gcg_miou_recall_ap50"]
    table = vector["text_similarity"]
    metric = GroundedCaption(similarity=lambda phrase, target: table[f"{target}|{phrase}"])
    metric.update(
        EvalRecord(
            pred=stacked(vector["pred_masks"]),
            target=stacked(vector["gt_masks"]),
            phrases=tuple(vector["pred_phrases"]),
            reference_phrases=tuple(vector["gt_phrases"]),
        )
    )
    result = metric.compute()
    assert float(result["gcg_miou"]) == vector["expected"]["mIoU"]
    assert float(result["gcg_recall"]) == vector["expected"]["recall_admissible_pairs"]
