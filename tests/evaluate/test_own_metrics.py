"""Metrics of one's own: by the package's seam or by torchmetrics, logged, reported and compared like the built-in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex
from torchmetrics.text import CharErrorRate, ExtendedEditDistance

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import (
    Cider,
    EvalRecord,
    Judge,
    MeanScore,
    ReferringSegmentation,
    Report,
    Rules,
    TorchMetric,
    compare,
    own,
    score,
)
from sail_lightning.evaluate.report import to_json, to_markdown

EXAMPLE = Path(__file__).parents[2] / "examples" / "boundary_iou.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example's module, loaded as `--plugins` loads it; forgotten again after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    registry.load(str(EXAMPLE))
    yield sys.modules.pop("boundary_iou")
    registry.SOURCES.pop(str(EXAMPLE))


def blob(rng: np.random.Generator, height: int = 30, width: int = 40) -> np.ndarray:
    """A filled ellipse somewhere, (H, W) bool."""
    y, x = np.mgrid[:height, :width]
    center, radii = rng.uniform((5, 5), (height - 5, width - 5)), rng.uniform(4, 14, 2)
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def referred(count: int, seed: int = 0) -> list[EvalRecord]:
    """Referring answers whose masks are near the truth."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        target = blob(rng)
        pred = target ^ (rng.random(target.shape) < rng.choice([0.0, 0.02, 0.2]))
        record = EvalRecord(str(number), "refcoco_val", pred=(pred,), target=(target,), extra={"task": "refer"})
        found.append(EvalRecord.from_json(record.to_json()))
    return found


def reference_boundary_iou(pred: np.ndarray, target: np.ndarray, share: float) -> float:
    """Cheng et al.: pixels of a mask whose distance to what is not of it, or to beyond the image, is at most d."""
    reach = max(1, round(share * (pred.shape[0] ** 2 + pred.shape[1] ** 2) ** 0.5))

    def near(mask: np.ndarray) -> set[tuple[int, int]]:
        padded = np.pad(mask, reach)
        found = set()
        for row, column in zip(*np.nonzero(mask), strict=True):
            window = padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
            if not window.all():
                found.add((int(row), int(column)))
        return found

    one, other = near(pred), near(target)
    return len(one & other) / len(one | other) if one | other else 1.0


def logged(records: list[EvalRecord], metrics: dict[str, Any]) -> dict[str, float]:
    judge = Judge(metrics=metrics)
    for record in records:
        judge.update(record)
    return judge.compute()


def only(records: list[EvalRecord], **options: Any) -> Report:
    (report,) = score(records, **{"bootstrap": 200, **options}).values()
    return report


# -- Boundary IoU, the example ----------------------------------------------------------------------------------------


def test_the_example_is_no_longer_than_25_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 25


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_boundary_iou_is_that_of_its_definition(example: ModuleType, share: float) -> None:
    metric = example.BoundaryIoU(share)
    for record in referred(8):
        expected = reference_boundary_iou(*record.united_masks(), share)
        assert metric.answer_score(record) == pytest.approx(expected)
    empty = np.zeros((1, 5, 5), bool)
    assert metric.answer_score(EvalRecord(pred=empty, target=empty)) == 1.0


def test_a_share_that_is_no_share_is_refused(example: ModuleType) -> None:
    with pytest.raises(SailUsageError, match="^BoundaryIoU: share must be from 0 to 1, not -0.5"):
        example.BoundaryIoU(-0.5)


def test_it_is_logged_reported_with_an_interval_and_in_every_answers_score(example: ModuleType) -> None:
    records, metrics = referred(12), {"biou": example.BoundaryIoU()}
    each = [reference_boundary_iou(*record.united_masks(), 0.02) for record in records]
    report = only(records, metrics=metrics)
    assert logged(records, metrics)["biou"] == report.metrics["biou"] == pytest.approx(np.mean(each))
    assert [sample["biou"] for sample in report.per_sample] == pytest.approx(each)
    low, high = report.intervals["biou"]
    assert low < report.metrics["biou"] < high
    assert report.metrics["ciou"] == only(records).metrics["ciou"]


def test_it_is_compared_in_pairs(example: ModuleType) -> None:
    first = referred(12)
    second = [EvalRecord.from_json({**record.to_json(), "pred": record.to_json()["target"]}) for record in first]
    found = compare(first, second, bootstrap=200, metrics={"biou": example.BoundaryIoU()})["refcoco_val"]
    difference = found.figures["biou"]
    assert difference.second == 1.0 and difference.low is not None and difference.low > 0
    assert difference.p is not None and difference.p < 0.05


# -- torchmetrics -----------------------------------------------------------------------------------------------------


def test_a_plain_torchmetric_pools_pixels_as_ciou_does_interval_and_all() -> None:
    records = referred(12)
    report = only(records, metrics={"jaccard": BinaryJaccardIndex()})
    assert report.metrics["jaccard"] == pytest.approx(report.metrics["ciou"], abs=1e-6)
    assert report.intervals["jaccard"] == pytest.approx(report.intervals["ciou"], abs=1e-6)
    assert [one["jaccard"] for one in report.per_sample] == pytest.approx([one["iou"] for one in report.per_sample])
    assert logged(records, {"jaccard": BinaryJaccardIndex()})["jaccard"] == report.metrics["jaccard"]


def test_ignored_pixels_are_given_to_no_torchmetric() -> None:
    mask = np.zeros((4, 6), bool)
    mask[:, :3] = True
    record = EvalRecord("0", "reasonseg_val", pred=(~np.zeros_like(mask),), target=(mask,), ignore=~mask, listed=True)
    assert only([record], metrics={"jaccard": BinaryJaccardIndex()}).metrics["jaccard"] == 1.0


def test_states_that_are_no_sums_give_a_value_and_no_interval_and_the_report_says_so() -> None:
    result = ("a red dog", "a red cat", "two")
    records = [
        EvalRecord(str(number), "region_caption", prediction=text, reference=("a red dog",))
        for number, text in enumerate(result)
    ]
    report = only(records, metrics={"eed": ExtendedEditDistance()}, meteor=False)
    each = [one["eed"] for one in report.per_sample]
    assert 0 <= each[0] < each[1] < each[2] and report.metrics["eed"] == pytest.approx(np.mean(each))
    assert "eed" not in report.intervals and "token_f1" in report.intervals
    assert report.notes == {"eed": "the states of ExtendedEditDistance are no sums"}
    reports = {"region_caption": report}
    assert "No interval of `eed`: the states of ExtendedEditDistance are no sums." in to_markdown(reports, {})
    assert to_json(reports, {})["benchmarks"]["region_caption"]["notes"] == report.notes


def test_texts_are_compared_with_their_reference() -> None:
    records = [
        EvalRecord(str(number), "region_caption", prediction=result, reference=("a red dog",))
        for number, result in enumerate(("a red dog", "a red cat"))
    ]
    report = only(records, metrics={"cer": CharErrorRate()}, meteor=False)
    assert report.metrics["cer"] == pytest.approx(3 / 18)
    assert [one["cer"] for one in report.per_sample] == pytest.approx([0, 3 / 9])


def test_a_report_leaves_out_a_metric_that_judges_none_of_its_answers() -> None:
    report = only(referred(3), metrics={"cer": CharErrorRate()})
    assert "cer" not in report.metrics and all("cer" not in one for one in report.per_sample)
    assert "cer" not in logged(referred(3), {"cer": CharErrorRate()})


def test_a_metric_that_gives_several_values_has_one_name_for_each() -> None:
    records = [EvalRecord(str(n), "region_caption", prediction="a dog", reference=("a dog",)) for n in range(2)]
    assert logged(records, {"mine": Cider()})["mine"] == 0.0  # all captions alike: every weight is zero
    assert own.named_values("mine", {"a": 1, "b": 2}) == {"mine_a": 1, "mine_b": 2}


# -- what cannot be ---------------------------------------------------------------------------------------------------


class Scored(MeanScore):
    """Scores each answer as it is told to."""

    def __init__(self, score: Any) -> None:
        super().__init__()
        self.given = score

    def answer_score(self, record: EvalRecord) -> Any:
        return self.given


class Half(MeanScore):
    """As bad as its argument."""

    takes = "masks"

    def __init__(self, value: float = 0.5) -> None:
        super().__init__()
        self.value = value

    def answer_score(self, record: EvalRecord) -> float:
        return 1 / 0 if self.value < 0 else self.value


class Unfed(torchmetrics.Metric):
    def update(self, *_: Any) -> None: ...

    def compute(self) -> torch.Tensor:
        return torch.tensor(0.0)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"ciou": Half()}, "ciou is a name of the built-in metrics"),
        ({"vres": Half()}, "vres is a name of the built-in metrics"),
        ({"a b": Half()}, "'a b' is no name"),
        ({"x": Unfed()}, "nothing says what Unfed takes; wrap it"),
        ({"x": 3}, "model.metrics.x must be a metric, not int"),
    ],
)
def test_a_metric_that_cannot_be_is_refused_at_the_start(metrics: Any, message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        Judge(metrics=metrics)


@pytest.mark.parametrize(
    ("metric", "rules", "message"),
    [
        (
            Cider(),
            Rules("official"),
            "metrics.mine: Cider has protocol standard, but the evaluation has official",
        ),
        (ReferringSegmentation(), Rules(combine="first"), "ReferringSegmentation has combine union, but .* has first"),
        (ReferringSegmentation(), Rules(no_target_from="text"), "has no_target_from mask, but the evaluation has text"),
    ],
)
def test_a_built_in_metric_under_another_name_is_not_left_at_other_rules(
    metric: Any, rules: Rules, message: str
) -> None:
    with pytest.raises(SailUsageError, match=message):
        Judge(rules, {"mine": metric})
    with pytest.raises(SailUsageError, match=message):
        score(referred(1), rules.protocol, rules.no_target_from, rules.combine, metrics={"mine": metric})


def test_a_built_in_metric_under_another_name_may_be_made_for_the_rules() -> None:
    rules = Rules("official")
    judge = Judge(rules, {"mine": ReferringSegmentation("official"), "other": Half()})
    for record in referred(3):
        judge.update(record)
    logged = judge.compute()
    assert logged["mine_ciou"] == logged["ciou"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            Half(1.5),
            "metric mine: answer '0' of refcoco_val: Half scores it 1.5, but a score must be a number from 0 to 1",
        ),
        (
            Half(-1),
            "metric mine: answer '0' of refcoco_val: ZeroDivisionError: division by zero \\(test_own_metrics.py, line",
        ),
        (
            Scored("high"),
            "metric mine: answer '0' of refcoco_val: Scored scores it 'high', but a score must be a number",
        ),
        (MulticlassJaccardIndex(2, average="none"), "metric mine: .*it gives 2 numbers as value; choose an average"),
    ],
)
def test_a_metric_that_fails_is_named_with_the_record(metric: Any, message: str) -> None:
    with pytest.raises(SailError, match=message):
        logged(referred(1), {"mine": metric})
    with pytest.raises(SailError, match=message):
        only(referred(1), metrics={"mine": metric})


def test_a_metric_that_scores_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Such as one whose `answer_score` lacks its `return`."""
    report = only(referred(3), metrics={"mine": Scored(None)})
    assert "mine" not in report.metrics
    assert "metric mine scored none of the 3 answers of refcoco_val: Scored gives no score for any" in caplog.text


def test_a_metric_that_takes_what_there_is_not_is_refused_where_it_is_defined() -> None:
    with pytest.raises(SailUsageError, match="Wrong.takes must be one of masks, words, everything, not 'mask'"):
        type("Wrong", (MeanScore,), {"takes": "mask"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["biou"], "takes NAME=CLASS, such as biou=BoundaryIoU, not 'biou'"),
        (["a=Half", "a=Half"], "names a twice"),
        (["a=Nothing"], "metric a: Nothing is no metric that can be made"),
        (["a={class_path: [}"], "is neither a class nor a mapping"),
        (["a=3"], "metric a: 3 is no metric that can be made"),
        (["a=[1]"], r"metric a: \[1\] is no metric that can be made"),
    ],
)
def test_options_that_name_no_metric_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        own.from_options(words)


def test_options_name_metrics_as_yaml_does() -> None:
    path = f"{Half.__module__}.Half"
    plain = "torchmetrics.classification.BinaryJaccardIndex"
    found = own.from_options([f"a={path}", f"b={{class_path: {path}, init_args: {{value: 0.25}}}}", f"c={plain}"])
    assert isinstance(found["a"], Half) and isinstance(found["b"], Half) and isinstance(found["c"], TorchMetric)
    assert (found["a"].value, found["b"].value) == (0.5, 0.25)
