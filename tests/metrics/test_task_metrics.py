"""Every answer is judged by the metrics of its task, under flat names."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from sail_lightning.metrics import TaskMetrics
from sail_lightning.metrics.masks import ignored
from sail_lightning.sample import Sample, Turn

ON, OFF = np.ones((1, 3, 4), bool), np.zeros((1, 3, 4), bool)
NONE = np.zeros((0, 3, 4), bool)
PRECISIONS = [f"pr@0.{tenths}" for tenths in (5, 6, 7, 8, 9)]


def answered(metrics: TaskMetrics, task: Any, text: str = "", answer: str = "", **rest: Any) -> None:
    turn = Turn("", answer, task=task, choices=rest.pop("choices", ()))
    given = {"masks": NONE, "phrases": (), "targets": NONE, **rest}
    metrics.update(task, text=text, turn=turn, **given)


def test_referring_reports_its_figures_under_plain_names() -> None:
    metrics = TaskMetrics()
    answered(metrics, "refer", masks=ON, targets=ON)
    answered(metrics, "refer", masks=ON, targets=OFF)
    expected = {"ciou": 0.5, "giou": 0.5, "n_acc": 0.0, "t_acc": 1.0, **dict.fromkeys(PRECISIONS, 1.0)}
    assert metrics.compute() == expected
    assert list(metrics.compute()) == list(expected)


def test_without_no_target_expressions_n_acc_is_left_out() -> None:
    metrics = TaskMetrics()
    answered(metrics, "refer", masks=ON, targets=ON)
    assert list(metrics.compute()) == ["ciou", "giou", "t_acc", *PRECISIONS]


@pytest.mark.parametrize(("text", "n_acc"), [("No target [SEG].", 1.0), ("It is [SEG].", 0.0)])
def test_the_no_target_decision_can_be_read_off_the_text(text: str, n_acc: float) -> None:
    metrics = TaskMetrics(no_target_from="text")
    answered(metrics, "refer", text, masks=ON, targets=NONE)
    assert metrics.compute()["n_acc"] == n_acc


def test_visual_text_referring_ignores_surplus_masks_and_misses_count() -> None:
    metrics = TaskMetrics()
    answered(metrics, "vres", masks=np.concatenate([ON, ON]), targets=ON)
    assert metrics.compute() == {"vres_ciou": 1.0, "vres_giou": 1.0}
    answered(metrics, "vres", masks=ON, targets=np.concatenate([ON, ON]))
    assert metrics.compute() == pytest.approx({"vres_ciou": 2 / 3, "vres_giou": 2 / 3})


@pytest.mark.parametrize(("masks", "giou"), [(NONE, 1.0), (OFF, 1.0), (ON, 0.0)])
def test_visual_text_referring_without_targets_is_one_no_target_expression(masks: Any, giou: float) -> None:
    metrics = TaskMetrics()
    answered(metrics, "vres", masks=masks, targets=NONE)
    assert metrics.compute()["vres_giou"] == giou


def test_descriptions_report_exact_match_token_f1_and_meteor_lite() -> None:
    metrics = TaskMetrics()
    answered(metrics, "describe", "A red circle.", "a red circle")
    answered(metrics, "describe", "red", "a red circle")
    one_of_three = (1 / 3) / (0.9 + 0.1 / 3) / 2
    expected = {"exact_match": 0.5, "token_f1": 0.75, "meteor_lite": (1 + one_of_three) / 2}
    assert metrics.compute() == pytest.approx(expected, abs=1e-11)


def test_multiple_choice_reads_the_options_of_the_turn() -> None:
    metrics = TaskMetrics()
    answered(metrics, "choice", "green", "B", choices=("red", "green"))
    answered(metrics, "choice", "A", "B", choices=("red", "green"))
    assert metrics.compute() == {"mcq_accuracy": 0.5}


def test_captions_compare_masks_phrases_and_words_with_the_true_answer() -> None:
    metrics = TaskMetrics()
    answer = "<p> a red circle </p> [SEG] above"
    answered(metrics, "caption", "<p> a red circle </p> [SEG]", answer, masks=ON, targets=ON, phrases=["a red circle"])
    expected = {"gcg_miou": 1.0, "gcg_recall": 1.0, "caption_f1": 6 / 7}
    assert metrics.compute() == pytest.approx(expected, abs=1e-11)


def test_chat_is_judged_by_nothing_and_an_unknown_task_is_refused() -> None:
    metrics = TaskMetrics()
    answered(metrics, "chat", "hello", "hi")
    assert metrics.compute() == {}
    with pytest.raises(ValueError, match="no task 'referr'; tasks are refer, describe"):
        answered(metrics, "referr")


@pytest.mark.parametrize(("task", "key"), [("refer", "ciou"), ("vres", "vres_ciou")])
def test_what_is_to_be_ignored_counts_nowhere(task: str, key: str) -> None:
    metrics = TaskMetrics()
    left = ON.copy()
    left[:, :, 2:] = False
    answered(metrics, task, masks=ON, targets=left, ignore=~left[0])
    assert metrics.compute()[key] == 1.0


def test_a_samples_ignored_region_is_that_of_the_masks_asked_about() -> None:
    sample = Sample(None, (), (ON[0], ON[0], ON[0]), meta={"ignore": [OFF[0], None, ON[0]]})
    regions = [ignored(sample, targets) for targets in ((0,), (1,), (0, 2))]
    assert regions[0] is not None and not regions[0].any() and regions[1] is None
    assert regions[2] is not None and regions[2].all()
    assert ignored(Sample(None, (), (ON[0],)), (0,)) is None


def test_reset_forgets_all_answers() -> None:
    metrics = TaskMetrics()
    answered(metrics, "refer", masks=ON, targets=ON)
    answered(metrics, "describe", "red", "red")
    metrics.reset()
    assert metrics.compute() == {}


def test_tasks_that_did_not_occur_raise_no_warning() -> None:
    metrics = TaskMetrics()
    answered(metrics, "describe", "red", "red")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.compute() == {"exact_match": 1.0, "token_f1": 1.0, "meteor_lite": 1.0}


def test_it_adds_nothing_to_a_checkpoint() -> None:
    assert TaskMetrics().state_dict() == {}
