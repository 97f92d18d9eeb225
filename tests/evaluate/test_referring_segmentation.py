"""Referring segmentation: definitions, edge cases, and independence of order, batches and number types."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import nn

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate import EvalRecord, ReferringSegmentation

Masks = NDArray[np.bool_]
Case = tuple[Masks, Masks, Masks | None]
EMPTY, FULL = np.zeros((1, 4, 5), bool), np.ones((1, 4, 5), bool)
NONE = np.zeros((0, 0, 0), bool)


def cells(*indices: int) -> Masks:
    """A mask (1, 4, 5) with the given pixels on, counted row by row."""
    mask = EMPTY.copy()
    mask.flat[list(indices)] = True
    return mask


def seen(pred: Any, target: Any, ignore: Any = None, text: str = "") -> EvalRecord:
    return EvalRecord(prediction=text, pred=pred, target=target, ignore=ignore)


def scored(cases: list[Case], **options: Any) -> dict[str, float]:
    metric = ReferringSegmentation(**options)
    for pred, target, ignore in cases:
        metric.update(seen(pred, target, ignore))
    counts = {name: float(metric.totals()[name]) for name in ("count", "missing")}
    return {key: float(value) for key, value in metric.compute().items()} | counts


def shown(items: list[Case]) -> dict[str, str]:
    """As text, in which NaN equals itself."""
    return {key: str(value) for key, value in scored(items).items()}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """An expression: 0 to 2 masks on either side, often empty, now and then an ignored region."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    pred = rng.random((draw(st.integers(0, 2)), height, width)) < draw(density)
    target = rng.random((draw(st.integers(0, 2)), height, width)) < draw(density)
    ignore = rng.random((height, width)) < 0.3 if draw(st.booleans()) else None
    return pred, target, ignore


def brute_force(cases: list[Case]) -> dict[str, float]:
    """The definitions, spelled out in float64."""
    both, either, ious, wanted, empty = [], [], [], [], []
    for pred, target, ignore in cases:
        keep = np.ones(target.shape[1:], bool) if ignore is None else ~ignore
        p, g = pred.any(0) & keep, target.any(0) & keep
        both.append(np.float64((p & g).sum()))
        either.append(np.float64((p | g).sum()))
        ious.append(both[-1] / either[-1] if either[-1] else np.float64(1))
        wanted.append(bool(g.any()))
        empty.append(not p.any())
    on, iou, none = np.array(wanted), np.array(ious), np.array(empty)
    result = {
        "ciou": float(np.sum(both) / np.sum(either)) if np.sum(either) else 1.0,
        "giou": float(iou.mean()),
        "n_acc": float(none[~on].mean()) if (~on).any() else math.nan,
        "t_acc": float((~none)[on].mean()) if on.any() else math.nan,
    }
    for level in (0.5, 0.6, 0.7, 0.8, 0.9):
        result[f"pr@{level}"] = float((iou[on] >= level).mean()) if on.any() else math.nan
    return result


def test_it_equals_a_float64_brute_force_on_thousands_of_masks() -> None:
    rng = np.random.default_rng(0)
    cases: list[Case] = []
    for _ in range(3000):
        height, width = rng.integers(1, 24, 2)
        target = rng.random((rng.integers(0, 3), height, width)) < rng.choice([0.0, 0.05, 0.4, 1.0])
        # Most predictions are a truth with some pixels flipped, so that every Pr@X level is met.
        pred = target.any(0)[None] ^ (rng.random((1, height, width)) < rng.choice([0.0, 0.02, 0.1, 0.5]))
        ignore = rng.random((height, width)) < 0.2 if rng.random() < 0.3 else None
        cases.append((pred, target, ignore))
    result, expected = scored(cases), brute_force(cases)
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-11)
    assert result["count"] == 3000
    assert 0 < result["pr@0.9"] < result["pr@0.8"] < result["pr@0.7"] < result["pr@0.6"] < result["pr@0.5"] < 1


def test_the_iou_of_one_expression_is_that_of_pycocotools() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        shape = (1, *rng.integers(2, 30, 2).tolist())
        pred, target = rng.random(shape) < 0.5, rng.random(shape) < 0.3
        pred[0, 0, 0] = target[0, 1, 1] = True  # never empty: there pycocotools has 0 / 0
        codes = [coco.encode(np.asfortranarray(mask[0].astype(np.uint8))) for mask in (pred, target)]
        expected = float(coco.iou(codes[:1], codes[1:], [False])[0, 0])
        assert scored([(pred, target, None)])["giou"] == pytest.approx(expected, abs=1e-11)


@given(st.lists(cases(), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_expressions_changes_no_bit(items: list[Case], random: Any) -> None:
    shuffled = random.sample(items, len(items))
    assert str(scored(items)) == str(scored(shuffled))


@given(st.lists(cases(), min_size=1, max_size=8), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_splitting_over_merged_objects_changes_no_bit(items: list[Case], parts: int) -> None:
    whole = ReferringSegmentation()
    for item in items:
        whole.update(seen(*item))
    merged = ReferringSegmentation()
    for part in range(parts):
        other = ReferringSegmentation()
        for item in items[part::parts]:
            other.update(seen(*item))
        merged.merge_state(other)
    assert torch.equal(merged.sums, whole.sums)
    merged.update(seen(*items[0]))
    whole.update(seen(*items[0]))
    assert str(merged.compute()) == str(whole.compute())


@given(st.lists(cases(), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_every_figure_lies_between_zero_and_one_and_precision_falls_with_the_level(items: list[Case]) -> None:
    result = scored(items)
    figures = [value for key, value in result.items() if key not in ("count", "missing")]
    assert all(math.isnan(value) or 0 <= value <= 1 for value in figures)
    levels = [result[f"pr@0.{tenths}"] for tenths in (5, 6, 7, 8, 9)]
    assert math.isnan(levels[0]) or levels == sorted(levels, reverse=True)


@given(st.lists(cases(), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_numpy_and_torch_masks_score_alike(items: list[Case]) -> None:
    metric = ReferringSegmentation()
    for pred, target, ignore in items:
        mask = None if ignore is None else torch.from_numpy(ignore)
        metric.update(seen(torch.from_numpy(pred), torch.from_numpy(target), mask))
    assert {key: str(float(value)) for key, value in metric.compute().items()}.items() <= shown(items).items()


@given(st.lists(cases(), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_text_that_says_what_the_mask_shows_changes_nothing(items: list[Case]) -> None:
    metric = ReferringSegmentation(no_target_from="text")
    for pred, target, ignore in items:
        visible = pred.any(0) if ignore is None else pred.any(0) & ~ignore
        metric.update(seen(pred, target, ignore, "[SEG]" if visible.any() else "No target."))
    assert {key: str(float(value)) for key, value in metric.compute().items()}.items() <= shown(items).items()


def test_the_keys_are_the_documented_ones_also_before_any_expression() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        result = ReferringSegmentation().compute()
    levels = [f"pr@0.{tenths}" for tenths in (5, 6, 7, 8, 9)]
    assert list(result) == ["ciou", "giou", "n_acc", "t_acc", *levels]
    assert all(math.isnan(result[key]) for key in ["ciou", "giou", "n_acc", "t_acc", *levels])


def test_a_perfect_answer_scores_one_everywhere() -> None:
    result = scored([(FULL, FULL, None), (EMPTY, EMPTY, None)])
    assert {result[key] for key in result if key not in ("count", "missing")} == {1.0}


def test_two_empty_masks_agree() -> None:
    result = scored([(EMPTY, EMPTY, None)])
    assert (result["ciou"], result["giou"], result["n_acc"]) == (1.0, 1.0, 1.0)
    assert math.isnan(result["t_acc"]) and math.isnan(result["pr@0.5"])


def test_a_mask_where_nothing_is_meant_costs_its_area_in_ciou() -> None:
    result = scored([(FULL, EMPTY, None), (FULL, FULL, None)])
    assert (result["ciou"], result["giou"], result["n_acc"], result["t_acc"]) == (0.5, 0.5, 0.0, 1.0)


def test_without_no_target_expressions_n_acc_is_nan() -> None:
    assert math.isnan(scored([(FULL, FULL, None)])["n_acc"])


def test_precision_is_taken_over_targeted_expressions_only() -> None:
    assert scored([(EMPTY, EMPTY, None), (FULL, FULL, None), (cells(0), cells(1), None)])["pr@0.5"] == 0.5


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_an_iou_of_exactly_the_level_passes_it(tenths: int) -> None:
    result = scored([(cells(*range(tenths)), cells(*range(10)), None)])
    passed = [level for level in (5, 6, 7, 8, 9) if result[f"pr@0.{level}"] == 1.0]
    assert passed == [level for level in (5, 6, 7, 8, 9) if level <= tenths]


def test_a_missing_prediction_is_an_empty_mask_and_counted() -> None:
    missing, empty = scored([(NONE, FULL, None)]), scored([(EMPTY, FULL, None)])
    assert (missing.pop("missing"), empty.pop("missing")) == (1, 0)
    assert str(missing) == str(empty)
    assert (missing["ciou"], missing["giou"], missing["t_acc"]) == (0.0, 0.0, 0.0)


def test_several_masks_are_united_or_only_the_first_counts() -> None:
    two = np.concatenate([cells(0), cells(1)])
    assert scored([(two, cells(0, 1), None)])["giou"] == 1.0
    assert scored([(two, cells(0, 1), None)], combine="first")["giou"] == 0.5


def test_ignored_pixels_count_nowhere() -> None:
    result = scored([(cells(0, 1, 2), cells(0, 3), cells(1, 2, 3)[0])])
    assert (result["ciou"], result["giou"]) == (1.0, 1.0)


def test_an_ignored_target_is_no_target() -> None:
    result = scored([(cells(1), cells(1), cells(1)[0])])
    assert result["n_acc"] == 1.0 and math.isnan(result["t_acc"])


def test_a_text_that_denies_the_target_discards_the_hit_but_keeps_the_union() -> None:
    metric = ReferringSegmentation(no_target_from="text")
    metric.update(seen(FULL, FULL, text="No target."))
    result = metric.compute()
    assert (float(result["ciou"]), float(result["giou"]), float(result["t_acc"])) == (0.0, 0.0, 0.0)
    assert metric.totals()["union"] == 20


def test_a_text_that_claims_a_target_fails_also_with_an_empty_mask() -> None:
    metric = ReferringSegmentation(no_target_from="text")
    metric.update(seen(EMPTY, EMPTY, text="[SEG]"))
    result = metric.compute()
    assert (float(result["giou"]), float(result["n_acc"])) == (0.0, 0.0)


def test_pixel_counts_beyond_float32_stay_exact() -> None:
    big = torch.ones(1, 4097, 4097, dtype=torch.bool)  # 16,785,409 pixels; float32 holds odd ones up to 2**24
    less = big.clone()
    less[0, 0, 0] = False
    metric = ReferringSegmentation()
    metric.update(seen(less, big))
    total = metric.totals()
    assert (total["intersection"], total["union"]) == (4097**2 - 1, 4097**2)
    assert float(metric.compute()["ciou"]) == (4097**2 - 1) / 4097**2 < 1


def test_a_cast_of_the_model_to_bfloat16_costs_no_precision() -> None:
    holder = nn.ModuleDict({"metric": ReferringSegmentation()})
    metric = holder["metric"]
    metric.update(seen(cells(0), cells(0, 1, 2)))
    holder.to(torch.bfloat16)
    metric.update(seen(cells(0), cells(0, 1, 2)))
    assert metric.sums.dtype == torch.int64
    assert float(metric.compute()["giou"]) == pytest.approx(1 / 3, abs=1e-11)


def test_a_state_made_in_inference_mode_can_be_added_to_outside_it() -> None:
    metric = ReferringSegmentation()
    with torch.inference_mode():
        metric.reset()
        metric.update(seen(FULL, FULL))
    metric.update(seen(EMPTY, FULL))
    assert float(metric.compute()["giou"]) == 0.5


def test_the_metric_adds_nothing_to_a_checkpoint() -> None:
    assert ReferringSegmentation().state_dict() == {}


@pytest.mark.parametrize(
    ("pred", "target", "ignore", "error", "message"),
    [
        (FULL.astype(np.uint8), FULL, None, TypeError, "pred must be bool, not torch.uint8"),
        (FULL, FULL.astype(np.float32), None, TypeError, "target must be bool"),
        (FULL[0], FULL, None, ValueError, r"pred must be \(n, H, W\)"),
        (FULL[:, :2], FULL, None, ValueError, "differ in size"),
        (FULL, FULL, FULL[0, :2], ValueError, r"ignore is \(2, 5\)"),
        (FULL, FULL, FULL[0].astype(np.uint8), TypeError, "ignore must be bool"),
    ],
)
def test_masks_that_do_not_fit_are_refused_with_the_reason(
    pred: Any, target: Any, ignore: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ReferringSegmentation().update(seen(pred, target, ignore))


@pytest.mark.parametrize("options", [{"combine": "last"}, {"no_target_from": "area"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SailUsageError, match="must be"):
        ReferringSegmentation(**options)
