"""Grounded captions: pairing, mIoU and phrase recall."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from sail_lightning.errors import SailError
from sail_lightning.evaluate import EvalRecord, GroundedCaption
from sail_lightning.evaluate.metrics.pairing import greedy_pairs, pairwise_iou

Masks = NDArray[np.bool_]
NONE = np.zeros((0, 4, 4), bool)
SCORES = st.integers(0, 4).flatmap(
    lambda columns: st.lists(
        st.lists(st.integers(0, 6).map(lambda sixth: Fraction(sixth, 6)), min_size=columns, max_size=columns),
        max_size=4,
    )
)


def rows(*wanted: int, columns: int = 4) -> Masks:
    """A mask (4, 4) with the given rows on, in the first `columns` columns."""
    mask = np.zeros((4, 4), bool)
    mask[list(wanted), :columns] = True
    return mask


def grounded(pred: Masks, phrases: list[str], target: Masks, true_phrases: list[str]) -> EvalRecord:
    return EvalRecord(pred=pred, target=target, phrases=tuple(phrases), reference_phrases=tuple(true_phrases))


def scored(*images: tuple[Masks, list[str], Masks, list[str]]) -> tuple[float, float]:
    metric = GroundedCaption()
    for image in images:
        metric.update(grounded(*image))
    result = metric.compute()
    return float(result["gcg_miou"]), float(result["gcg_recall"])


def test_pairwise_iou_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.random((5, 13, 17)) < 0.5, rng.random((7, 13, 17)) < 0.3
    codes = [coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))) for masks in (pred, target)]
    expected = coco.iou(codes[0], codes[1], [False] * 7)
    assert np.array(pairwise_iou(pred, target), float) == pytest.approx(expected, abs=1e-12)


@given(SCORES)
@settings(max_examples=100, deadline=None)
def test_greedy_pairs_are_one_to_one_positive_falling_and_leave_nothing_to_pair(scores: list[list[Fraction]]) -> None:
    pairs = greedy_pairs(scores)
    taken_rows, taken_columns = {row for row, _ in pairs}, {column for _, column in pairs}
    assert len(taken_rows) == len(taken_columns) == len(pairs)
    values = [scores[row][column] for row, column in pairs]
    assert all(value > 0 for value in values)
    assert values == sorted(values, reverse=True)
    for row, line in enumerate(scores):
        for column, value in enumerate(line):
            assert value == 0 or row in taken_rows or column in taken_columns


def test_a_perfect_caption_scores_one() -> None:
    masks, phrases = np.stack([rows(0), rows(2)]), ["a red circle", "the lawn"]
    assert scored((masks, phrases, masks, phrases)) == (1.0, 1.0)


def test_the_order_of_the_phrases_does_not_matter() -> None:
    masks, phrases = np.stack([rows(0), rows(2)]), ["a red circle", "the lawn"]
    assert scored((masks[::-1], phrases[::-1], masks, phrases)) == (1.0, 1.0)


def test_miou_averages_matched_pairs_within_an_image_then_images() -> None:
    two = np.stack([rows(0), rows(2, columns=2)])
    perfect_and_half = (two, ["x", "x"], np.stack([rows(0), rows(2)]), ["x", "x"])
    nothing = (NONE, [], rows(0)[None], ["x"])
    assert scored(perfect_and_half) == (0.75, 1.0)
    assert scored(perfect_and_half, nothing) == (0.375, pytest.approx(2 / 3))


def test_surplus_predictions_cost_miou_nothing() -> None:
    assert scored((np.stack([rows(0), rows(3)]), ["x", "y"], rows(0)[None], ["x"])) == (1.0, 1.0)


def test_a_true_mask_is_matched_only_once() -> None:
    twice = np.stack([rows(0), rows(0)])
    assert scored((twice, ["x", "x"], np.stack([rows(0), rows(2)]), ["x", "x"])) == (1.0, 0.5)


@pytest.mark.parametrize(("columns", "recall"), [(1, 0.0), (2, 1.0), (4, 1.0)])
def test_recall_needs_half_the_iou(columns: int, recall: float) -> None:
    assert scored((rows(0, columns=columns)[None], ["x"], rows(0)[None], ["x"]))[1] == recall


@pytest.mark.parametrize(("phrase", "recall"), [("circle", 1.0), ("green square", 0.0), ("", 0.0)])
def test_recall_needs_half_the_token_f1(phrase: str, recall: float) -> None:
    assert scored((rows(0)[None], [phrase], rows(0)[None], ["a red circle"]))[1] == recall


def test_a_good_mask_under_a_wrong_phrase_leaves_the_truth_to_another() -> None:
    masks = np.stack([rows(0), rows(0, columns=3)])
    assert scored((masks, ["dog", "cat"], rows(0)[None], ["cat"])) == (1.0, 1.0)


def test_a_mask_without_a_phrase_counts_for_miou_only() -> None:
    assert scored((rows(0)[None], [], rows(0)[None], ["x"])) == (1.0, 0.0)


def test_a_phrase_without_a_mask_counts_for_nothing() -> None:
    assert scored((rows(0)[None], ["x", "y"], np.stack([rows(0), rows(2)]), ["x", "y"])) == (1.0, 0.5)


def test_an_image_without_truth_adds_no_phrase_to_recall() -> None:
    miou, recall = scored((NONE, [], NONE, []))
    assert miou == 0.0 and math.isnan(recall)


def test_a_truth_with_unequal_phrases_and_masks_is_a_fault_of_the_data() -> None:
    with pytest.raises(SailError, match="1 phrases but 2 masks"):
        GroundedCaption().update(grounded(NONE, [], np.stack([rows(0), rows(1)]), ["x"]))
