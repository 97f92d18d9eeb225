"""AP of grounded captions is COCOeval's, does not depend on the order of images, and can be drawn again."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sail_lightning.evaluate import EvalRecord, MaskAveragePrecision, score
from sail_lightning.evaluate.metrics.average_precision import Image, mask_matches
from sail_lightning.evaluate.metrics.image_order import image_order
from sail_lightning.generation.prediction import encode_rle

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "eval_vectors.json").read_text())["vectors"]


def pictures(seed: int, count: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of 0 to 4 predicted and 0 to 4 true masks; most predictions are a truth with some pixels flipped."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        target = rng.random((rng.integers(0, 5), 8, 9)) < rng.choice([0.1, 0.4])
        pred = rng.random((rng.integers(0, 5), 8, 9)) < 0.4
        for place in range(min(len(pred), len(target))):
            pred[place] = target[place] ^ (rng.random((8, 9)) < rng.choice([0.0, 0.05, 0.3]))
        found.append((pred, target))
    return found


def coded(items: list[tuple[np.ndarray, np.ndarray]]) -> list[Image]:
    return [([encode_rle(mask) for mask in pred], [encode_rle(mask) for mask in target]) for pred, target in items]


def stats_of_cocoeval(items: list[Image]) -> list[float]:
    """The twelve figures, the ordinary way: dictionaries, `loadRes`, `summarize`."""
    truth = COCO()
    annotations = [
        {"image_id": n, "category_id": 1, "segmentation": rle, "area": 1.0, "iscrowd": 0}
        for n, (_, target) in enumerate(items)
        for rle in target
    ]
    truth.dataset = {
        "images": [{"id": n, "height": 8, "width": 9} for n in range(len(items))],
        "categories": [{"id": 1}],
        "annotations": [{"id": place, **record} for place, record in enumerate(annotations, 1)],
    }
    results = [
        {"image_id": n, "category_id": 1, "segmentation": dict(rle), "score": 1.0}
        for n, (pred, _) in enumerate(items)
        for rle in pred
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats]


@pytest.mark.parametrize("seed", range(6))
def test_both_figures_are_those_of_cocoeval(seed: int) -> None:
    items = coded(pictures(seed))
    expected = stats_of_cocoeval(items)
    figures = mask_matches(items).values
    assert (figures["gcg_ap"], figures["gcg_ap50"]) == pytest.approx((expected[0], expected[1]), abs=1e-12)
    assert 0 < figures["gcg_ap"] < figures["gcg_ap50"] < 1


@pytest.mark.parametrize("seed", range(6))
def test_drawing_every_image_once_gives_the_figures_themselves(seed: int) -> None:
    matches = mask_matches(coded(pictures(seed)))
    drawn = matches.resampled(np.ones((1, len(matches.truths))))
    assert {key: float(value[0]) for key, value in drawn.items()} == pytest.approx(matches.values, abs=1e-12)


def test_a_draw_is_the_figure_of_the_images_drawn() -> None:
    items = coded(pictures(7))
    matches = mask_matches(items)
    drawn = np.array([[2, 0, 1] * 4, [0, 0, 0] * 4])
    values = matches.resampled(drawn)["gcg_ap50"]
    # Images that are in once or not at all: the figure of those alone.
    once = np.array([[1, 0, 1] * 4])
    alone = mask_matches([item for item, number in zip(items, once[0], strict=True) if number]).values["gcg_ap50"]
    assert float(matches.resampled(once)["gcg_ap50"][0]) == pytest.approx(alone, abs=1e-12)
    assert 0 < values[0] < 1 and math.isnan(values[1])


def test_the_vector_has_its_official_and_expected_figures() -> None:
    (vector,) = (one for one in VECTORS if one["name"] == "gcg_miou_recall_ap50")
    masks = {
        key: np.array([[[char == "1" for char in row] for row in rows] for rows in vector[key]])
        for key in ("pred_masks", "gt_masks")
    }
    figures = mask_matches(coded([(masks["pred_masks"], masks["gt_masks"])])).values
    assert figures["gcg_ap50"] == vector["expected"]["AP50"] == vector["official"]["AP50"]
    assert figures["gcg_ap"] == pytest.approx(vector["official"]["AP"], abs=1e-4)


@given(st.integers(0, 2**31), st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_the_order_of_images_changes_no_bit(seed: int, random: Any) -> None:
    named = list(enumerate(pictures(seed, count=5)))
    results = []
    for order in (named, random.sample(named, len(named))):
        metric = MaskAveragePrecision()
        for name, (pred, target) in order:
            metric.update(EvalRecord(f"picture {name}", pred=pred, target=target))
        results.append(str(metric.compute()))
    assert results[0] == results[1]


def test_images_named_by_whole_numbers_are_ranked_as_cocoeval_ranks_them() -> None:
    items = pictures(3, count=30)
    expected = stats_of_cocoeval(coded(items))
    metric = MaskAveragePrecision()
    answers = []
    for number, ((pred, target), (found, true)) in enumerate(zip(items, coded(items), strict=True)):
        metric.update(EvalRecord(str(number), pred=pred, target=target))
        answers.append(EvalRecord(str(number), "gcg", pred=tuple(found), target=tuple(true), listed=True))
    figures = [
        {key: float(value) for key, value in metric.compute().items()},
        score(answers, bootstrap=0)["gcg"].metrics,
    ]
    for one in figures:
        assert (one["gcg_ap"], one["gcg_ap50"]) == pytest.approx((expected[0], expected[1]), abs=1e-12)


def test_names_that_are_no_numbers_come_last_and_as_text() -> None:
    names = ["b", "10", "a10", "9", "a9", "007", "\u0663", "9" * 5000]
    assert sorted(names, key=image_order) == ["007", "9", "10", "9" * 5000, "a10", "a9", "b", "\u0663"]


def test_exact_masks_score_one_and_none_at_all_zero() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 2:] = True, True
    none = np.zeros((0, 4, 4), bool)
    assert mask_matches(coded([(masks, masks)])).values == {"gcg_ap50": 1.0, "gcg_ap": 1.0}
    assert mask_matches(coded([(none, masks)])).values == {"gcg_ap50": 0.0, "gcg_ap": 0.0}
    assert all(math.isnan(value) for value in mask_matches(coded([(masks, none)])).values.values())


def test_an_empty_prediction_is_a_wrong_mask() -> None:
    mask, empty = np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool)
    figures = mask_matches(coded([(np.concatenate([empty, mask]), mask)])).values
    assert figures["gcg_ap50"] == pytest.approx(0.5)
