"""Every answer is judged by the metrics of its benchmark or task, under flat names."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any, get_args

import numpy as np
import pytest

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import EvalRecord, Judge, Kind, Rules
from sail_lightning.evaluate.metrics.masks import ignored
from sail_lightning.sample import Sample

ON, OFF = np.ones((1, 3, 4), bool), np.zeros((1, 3, 4), bool)
NONE = np.zeros((0, 3, 4), bool)
PRECISIONS = [f"pr@0.{tenths}" for tenths in (5, 6, 7, 8, 9)]


def answered(metrics: Judge, task: Any, text: str = "", answer: str = "", **rest: Any) -> None:
    by_masks = task in ("refer", "vres", "caption")
    fields: dict[str, Any] = {"choices": rest.pop("choices", ())}
    if by_masks:
        fields |= {
            "pred": rest.pop("masks", NONE),
            "target": rest.pop("targets", NONE),
            "ignore": rest.pop("ignore", None),
        }
    fields |= {"true_answer": answer} if task == "choice" else {"reference": (answer,)} if task != "refer" else {}
    metrics.update(EvalRecord(prediction=text, listed=by_masks, extra={"task": task}, **fields, **rest))


def test_referring_reports_its_figures_under_plain_names() -> None:
    metrics = Judge()
    answered(metrics, "refer", masks=ON, targets=ON)
    answered(metrics, "refer", masks=ON, targets=OFF)
    expected = {"ciou": 0.5, "giou": 0.5, "n_acc": 0.0, "t_acc": 1.0, **dict.fromkeys(PRECISIONS, 1.0)}
    assert metrics.compute() == expected
    assert list(metrics.compute()) == list(expected)


def test_without_no_target_expressions_n_acc_is_left_out() -> None:
    metrics = Judge()
    answered(metrics, "refer", masks=ON, targets=ON)
    assert list(metrics.compute()) == ["ciou", "giou", "t_acc", *PRECISIONS]


@pytest.mark.parametrize(("text", "n_acc"), [("No target [SEG].", 1.0), ("It is [SEG].", 0.0)])
def test_the_no_target_decision_can_be_read_off_the_text(text: str, n_acc: float) -> None:
    metrics = Judge(Rules(no_target_from="text"))
    answered(metrics, "refer", text, masks=ON, targets=NONE)
    assert metrics.compute()["n_acc"] == n_acc


def test_visual_text_referring_ignores_surplus_masks_and_misses_count() -> None:
    metrics = Judge()
    answered(metrics, "vres", masks=np.concatenate([ON, ON]), targets=ON)
    assert metrics.compute() == {"vres_ciou": 1.0, "vres_giou": 1.0}
    answered(metrics, "vres", masks=ON, targets=np.concatenate([ON, ON]))
    assert metrics.compute() == pytest.approx({"vres_ciou": 2 / 3, "vres_giou": 2 / 3})


@pytest.mark.parametrize(("masks", "giou"), [(NONE, 1.0), (OFF, 1.0), (ON, 0.0)])
def test_visual_text_referring_without_targets_is_one_no_target_expression(masks: Any, giou: float) -> None:
    metrics = Judge()
    answered(metrics, "vres", masks=masks, targets=NONE)
    assert metrics.compute()["vres_giou"] == giou


def test_descriptions_report_exact_match_token_f1_and_meteor_lite() -> None:
    metrics = Judge()
    answered(metrics, "describe", "A red circle.", "a red circle")
    answered(metrics, "describe", "red", "a red circle")
    one_of_three = (1 / 3) / (0.9 + 0.1 / 3) / 2
    expected = {"exact_match": 0.5, "token_f1": 0.75, "meteor_lite": (1 + one_of_three) / 2}
    assert metrics.compute() == pytest.approx(expected, abs=1e-11)


def test_multiple_choice_reads_the_options_of_the_turn() -> None:
    metrics = Judge()
    answered(metrics, "choice", "green", "B", choices=("red", "green"))
    answered(metrics, "choice", "A", "B", choices=("red", "green"))
    assert metrics.compute() == {"mcq_accuracy": 0.5}


def test_captions_compare_masks_phrases_and_words_with_the_true_answer() -> None:
    metrics = Judge()
    answer = "<p> a red circle </p> [SEG] above"
    answered(metrics, "caption", "<p> a red circle </p> [SEG]", answer, masks=ON, targets=ON, phrases=("a red circle",))
    expected = {"gcg_miou": 1.0, "gcg_recall": 1.0, "caption_f1": 6 / 7}
    assert metrics.compute() == pytest.approx(expected, abs=1e-11)


def test_chat_is_judged_by_nothing_unless_its_benchmark_says_what_it_is() -> None:
    metrics = Judge()
    answered(metrics, "chat", "hello", "hi")
    assert metrics.compute() == {}
    answered(metrics, "chat", "Yes, a dog.", "yes", benchmark="pope_random")
    assert metrics.compute() == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "yes_ratio": 1.0}


def test_one_name_for_questions_that_are_judged_in_different_ways_is_refused() -> None:
    metrics = Judge()
    answered(metrics, "refer", masks=ON, targets=ON, benchmark="mine")
    with pytest.raises(SailUsageError, match="benchmark mine holds questions of different tasks, choice among them"):
        answered(metrics, "choice", "A", "A", benchmark="mine")


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ({"referr": "refcoco_val"}, "no task 'referr'; tasks are refer, describe"),
        ({"describe": "refcoco_val"}, "benchmark refcoco_val is judged by masks, which describe questions do not have"),
        ({"refer": "region_caption"}, "benchmark region_caption is judged by words, which refer questions do not have"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused_before_anything_is_asked(benchmark: Any, message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        Judge(benchmark=benchmark)


def test_an_answer_that_cannot_be_judged_is_named() -> None:
    with pytest.raises(SailError, match="answer '7' of mine: the reference answer 'purple' names no option"):
        answered(Judge(), "choice", "A", "purple", choices=("red", "blue"), id="7", benchmark="mine")


@pytest.mark.parametrize(("task", "key"), [("refer", "ciou"), ("vres", "vres_ciou")])
def test_what_is_to_be_ignored_counts_nowhere(task: str, key: str) -> None:
    metrics = Judge()
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


BY_MASKS = ("refer", "refcoco", "refcoco+", "refcocog", "grefcoco", "reasonseg", "perbench_vres", "gcg")
LOGGED_AS = {
    **dict.fromkeys(("region_caption",), ("token_f1", "meteor_lite", "exact_match")),
    "perbench_caption": ("token_f1", "meteor_lite"),
    **dict.fromkeys(("perbench_mcq", "mcq"), ("mcq_accuracy",)),
    "perbench_vres": ("vres_ciou", "vres_giou"),
    "gcg": ("gcg_miou", "gcg_recall", "caption_f1"),
    "pope": ("accuracy", "precision", "recall", "f1", "yes_ratio"),
}
"""What is logged of each kind; of all others, cIoU and its like."""
REPORTED_AS = {"vres_ciou": "ciou", "vres_giou": "giou", "caption_f1": "token_f1"}


def questions(kind: str, count: int = 9) -> list[EvalRecord]:
    """Answers to a benchmark of a kind, half of them right; its name says its kind, or for `refer` the task."""
    rng, found = np.random.default_rng(3), []
    for number in range(count):
        right = rng.random() < 0.5
        fields: dict[str, Any] = {"listed": kind in BY_MASKS, "prediction": "a red. dog"}
        if kind in BY_MASKS:
            target = rng.random((0 if kind == "grefcoco" and number < 3 else 1, 6, 7)) < 0.5
            fields |= {"target": target, "pred": target if right else rng.random((2, 6, 7)) < 0.5}
        if kind == "gcg":
            fields |= {"reference": ("a dog",), "reference_phrases": ("a dog",), "phrases": ("a dog", "red")}
        elif kind in ("perbench_mcq", "mcq"):
            fields |= {"choices": ("red", "blue"), "true_answer": "A", "prediction": "A." if right else "blue, Alan"}
        elif kind == "pope":
            fields |= {"true_answer": "yes" if number % 3 else "no", "prediction": "Yes" if right else "neither"}
        elif kind not in BY_MASKS:
            fields["reference"] = ("a red dog" if right else "two cats, one red",)
        name = "mine" if kind == "refer" else f"{kind}_val"
        found.append(EvalRecord(str(number), name, extra={"task": "refer"} if kind == "refer" else {}, **fields))
    return found


@pytest.mark.parametrize("protocol", ["standard", "official"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_what_is_logged_of_a_kind_of_benchmark_is_in_its_report_with_equal_values(kind: str, protocol: Any) -> None:
    judge, records = Judge(Rules(protocol, meteor=False)), questions(kind)
    for record in records:
        judge.update(record)
    (report,) = judge.reports(records, bootstrap=0).values()
    assert report.kind == kind
    logged = judge.compute()
    referring = ("ciou", "giou", "t_acc", *PRECISIONS, *(["n_acc"] if kind == "grefcoco" else []))
    expected = LOGGED_AS.get(kind, [name for name in referring if name in report.metrics])
    assert sorted(logged) == sorted(expected) and logged
    assert logged == {name: report.metrics[REPORTED_AS.get(name, name)] for name in logged}


def test_a_question_that_the_data_hold_twice_counts_twice_in_log_and_report() -> None:
    judge = Judge()
    records = [
        EvalRecord("7", "mine", pred=masks, target=ON, extra={"task": "refer", "number": number})
        for number, masks in ((3, ON), (12, NONE))
    ]
    for record in records:
        judge.update(record)
    (report,) = judge.reports([*records, records[1]], bootstrap=0).values()  # a resumed test may write a line twice
    assert (report.counts["answers"], report.counts["duplicates"]) == (2, 1)
    assert report.metrics["giou"] == judge.compute()["giou"] == 0.5


def test_two_kinds_of_captions_are_logged_together_where_both_have_a_metric() -> None:
    judge = Judge()
    for kind, text in (("region_caption", "a dog"), ("perbench_caption", "a cat")):
        judge.update(EvalRecord("0", kind, prediction=text, reference=("a dog",)))
    logged = judge.compute()
    assert (logged["exact_match"], logged["token_f1"]) == (1.0, 0.75)


def test_reset_forgets_all_answers() -> None:
    metrics = Judge()
    answered(metrics, "refer", masks=ON, targets=ON)
    answered(metrics, "describe", "red", "red")
    metrics.reset()
    assert metrics.compute() == {}


def test_tasks_that_did_not_occur_raise_no_warning() -> None:
    metrics = Judge()
    answered(metrics, "describe", "red", "red")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.compute() == {"exact_match": 1.0, "token_f1": 1.0, "meteor_lite": 1.0}


def test_it_adds_nothing_to_a_checkpoint() -> None:
    assert Judge().state_dict() == {}


def test_old_names_of_the_room_work_with_a_warning() -> None:
    from sail_lightning import callbacks, evaluate

    with pytest.warns(FutureWarning, match="is now sail_lightning.evaluate.EvalRecord"):
        assert evaluate.Answer is EvalRecord
    with pytest.warns(FutureWarning, match="is now sail_lightning.callbacks.EvaluationWriter"):
        assert callbacks.AnswerWriter is callbacks.EvaluationWriter


def test_the_room_needs_no_lightning() -> None:
    code = (
        "import sys, sail_lightning.evaluate as room\n"
        "[getattr(room, name) for name in room.__all__]\n"
        "sys.exit('lightning' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
