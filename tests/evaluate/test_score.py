"""From answers to figures: definitions, the official code's rules, what changes no figure, and the bootstrap."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import (
    EvalRecord,
    GroundedCaption,
    ReferringSegmentation,
    Report,
    benchmark_metrics,
    score,
)
from sail_lightning.evaluate.bootstrap import draws, interval
from sail_lightning.evaluate.metrics.meteor import meteor_program
from sail_lightning.evaluate.metrics.official import round_trip
from sail_lightning.evaluate.metrics.segmentation import VisualTextReferring
from sail_lightning.evaluate.metrics.text import token_f1
from sail_lightning.generation.prediction import encode_rle

FILE = json.loads((Path(__file__).parents[1] / "golden" / "eval_vectors.json").read_text())
VECTORS: dict[str, dict[str, Any]] = {v["name"]: v for v in FILE["vectors"] + FILE["gt_roundtrip_defects"]}
Masks = np.ndarray
SIZE = (6, 7)
EMPTY, FULL = np.zeros(SIZE, bool), np.ones(SIZE, bool)


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Without METEOR 1.5, which takes ten seconds to start; tests of it ask for it by their mark."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(benchmark_metrics, "meteor_program", lambda: None)
    yield


def drawn(rows: list[str], on: str = "1") -> Masks:
    return np.array([[char == on for char in row] for row in rows])


def coded(masks: Any) -> tuple[dict[str, Any], ...]:
    return tuple(encode_rle(np.asarray(mask, bool)) for mask in masks)


def answer(id: str, pred: Any = (), target: Any = (), benchmark: str = "refcoco_val", **rest: Any) -> EvalRecord:
    """An answer with masks given as arrays."""
    return EvalRecord(id, benchmark, pred=coded(pred), target=coded(target), **{"size": SIZE, **rest})


def of_vector(name: str, benchmark: str) -> list[EvalRecord]:
    """The expressions of a vector. An empty truth is written as no target at all."""
    found = []
    for number, item in enumerate(item for image in VECTORS[name]["images"] for item in image):
        rows = item["pred"] or []
        preds = [drawn(rows)] if rows and isinstance(rows[0], str) else [drawn(one) for one in rows]
        target, ignore = drawn(item["gt"]), drawn(item["gt"], "x")
        found.append(
            EvalRecord(
                str(number),
                benchmark,
                prediction="No target [SEG]." if item.get("pred_nt") else "It is [SEG].",
                pred=coded(preds),
                target=coded([target] if target.any() else []),
                ignore=encode_rle(ignore) if ignore.any() else None,
                size=target.shape,
            )
        )
    return found


def only(answers: list[EvalRecord], **options: Any) -> Report:
    (report,) = score(answers, **{"bootstrap": 0, **options}).values()
    return report


def random_answers(seed: int, count: int, benchmark: str = "grefcoco_val") -> list[EvalRecord]:
    """Expressions with 0 to 2 masks on either side, often empty, now and then with an ignored region."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        target = rng.random((rng.integers(0, 3), *SIZE)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        pred = rng.random((rng.integers(0, 3), *SIZE)) < rng.choice([0.0, 0.5])
        if len(pred) and len(target):
            pred[0] = target[0] ^ (rng.random(SIZE) < rng.choice([0.0, 0.05, 0.3]))
        ignore = encode_rle(rng.random(SIZE) < 0.2) if rng.random() < 0.3 else None
        text = "No target." if rng.random() < 0.3 else "It is [SEG]."
        found.append(answer(f"a{number}", pred, target, benchmark, ignore=ignore, prediction=text))
    return found


# The vectors: what the definitions give, and what the official code gave.


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        *(("res_basic", "refcoco_val"), ("res_no_seg_is_zero_mask", "refcocog_val")),
        *(("gres_no_target_mask_rule", "grefcoco_val"), ("gres_no_target_explicit_flag", "grefcoco_val")),
        *(("lisa_no_seg_is_skipped", "reasonseg_val"), ("lisa_no_seg_is_skipped", "perbench/vres")),
        *(("lisa_ignore_255_becomes_foreground", "reasonseg_val"), ("lisa_ignore_255", "reasonseg_val")),
        ("res_first_seg_only", "refcoco_val"),
    ],
)
def test_the_standard_protocol_gives_the_vectors_expected_figures(name: str, benchmark: str) -> None:
    vector = VECTORS[name]
    report = only(
        of_vector(name, benchmark),
        no_target_from="text" if "flag" in name else "mask",
        combine="first" if "first" in name else None,
    )
    expected = vector.get("expected_rela") or vector["expected"]
    wanted = {"ciou": expected["cIoU"], "giou": expected["gIoU"]}
    if "N_acc" in expected:
        wanted |= {"n_acc": expected["N_acc"], "t_acc": expected["T_acc"]}
    assert {key: report.metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-11)
    counted = (report.counts["intersection"], report.counts["union"], report.counts["expressions"])
    assert counted == (expected["I"], expected["U"], expected["n"])


@pytest.mark.parametrize(
    ("name", "benchmark", "column"),
    [
        ("res_basic", "refcoco_val", "official"),
        ("res_no_seg_is_zero_mask", "refcoco+_val", "official"),
        ("res_first_seg_only", "refcocog_test", "official"),
        ("gres_no_target_mask_rule", "grefcoco_val", "official"),
        ("gres_no_target_explicit_flag", "grefcoco_val", "official"),
        ("lisa_no_seg_is_skipped", "reasonseg_val", "official"),
        ("lisa_no_seg_is_skipped", "perbench_vres", "official_vres"),
        ("lisa_no_seg_is_skipped", "refcoco_val", "official_RES_same_input"),
        ("lisa_ignore_255_becomes_foreground", "reasonseg_val", "official"),
        ("lisa_ignore_255", "reasonseg_val", "official"),
    ],
)
def test_the_official_protocol_gives_the_official_codes_figures(name: str, benchmark: str, column: str) -> None:
    official = VECTORS[name][column]
    report = only(of_vector(name, benchmark), protocol="official")
    wanted = {"ciou": official["cIoU"], "giou": official["gIoU"]}
    assert {key: report.metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    counted = (report.counts["intersection"], report.counts["union"], report.counts["expressions"])
    assert counted == (official["I"], official["U"], official["n"])


@pytest.mark.parametrize("name", ["lisa_ignore_255_becomes_foreground", "lisa_ignore_255"])
def test_e16_an_ignored_region_decodes_as_target_and_holes(name: str) -> None:
    vector = VECTORS[name]
    rows = vector["images"][0][0]["gt"]
    values = np.where(drawn(rows, "x"), 255, drawn(rows)).astype(np.uint8)
    assert np.array_equal(round_trip(values), drawn(vector["official_decoded_gt"]))


def test_e16_summed_polygons_lose_their_overlap() -> None:
    vector = VECTORS["res_overlapping_polygons_gt"]
    summed = np.array([[int(char) for char in row] for row in vector["summed_mask"]], np.uint8)
    decoded = round_trip(summed)
    assert np.array_equal(decoded, drawn(vector["official_decoded_gt"]))
    pred = drawn(vector["pred"])
    # A record holds binary masks: the official target has to be made from the sum, before it is written.
    wrong = only([answer("0", [pred], [decoded], size=(8, 8))], protocol="official")
    wanted = {"ciou": vector["official"]["cIoU"], "giou": vector["official"]["gIoU"]}
    assert {key: wrong.metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    right = only([answer("0", [pred], [summed > 0], size=(8, 8))])
    assert (right.metrics["ciou"], right.metrics["giou"]) == (1.0, 1.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_the_round_trip_is_that_of_pycocotools_and_leaves_binary_masks_be(seed: int, height: int, width: int) -> None:
    from pycocotools import mask as coco

    values = np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    theirs = coco.decode(coco.encode(np.asfortranarray(values)))
    assert np.array_equal(round_trip(values), theirs.astype(bool))
    assert np.array_equal(round_trip(values > 0), values > 0)


def test_e17_a_missing_prediction_counts_by_the_standard_and_is_skipped_officially() -> None:
    answers = [answer("0", [FULL], [FULL], "reasonseg_val"), answer("1", [], [FULL], "reasonseg_val")]
    assert only(answers).metrics["ciou"] == 0.5
    official = only(answers, protocol="official")
    assert official.metrics["ciou"] == pytest.approx(1.0, abs=1e-6)
    assert official.metrics["giou"] == pytest.approx(0.5, abs=1e-6)
    assert official.counts["missing"] == only(answers).counts["missing"] == 1


def test_e18_visual_text_referring_scores_every_target_by_the_standard_and_the_first_officially() -> None:
    vector = VECTORS["vres_multi_target"]
    (item,) = vector["items"]
    pred, target = ([drawn(rows) for rows in item[key]] for key in ("pred_masks_in_SEG_order", "gt_masks"))
    answers = [answer("0", pred, target, "perbench_vres", size=(4, 4))]
    standard, official = only(answers), only(answers, protocol="official")
    assert (standard.metrics["ciou"], standard.metrics["giou"]) == (1.0, 1.0)
    assert standard.counts["expressions"] == vector["expected"]["n"]
    wanted = {"ciou": vector["official"]["cIoU"], "giou": vector["official"]["gIoU"]}
    assert {key: official.metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    assert official.counts["expressions"] == vector["official"]["n"]
    assert standard.per_sample[0]["ious"] == [1.0, 1.0]


def test_e18_surplus_masks_of_visual_text_referring_cost_nothing_and_missing_ones_count() -> None:
    assert only([answer("0", [FULL, FULL], [FULL], "perbench_vres")]).metrics["giou"] == 1.0
    assert only([answer("0", [FULL], [FULL, FULL], "perbench_vres")]).metrics["giou"] == 0.5


def test_answers_named_by_their_task_are_judged_as_they_are_logged() -> None:
    one = answer("0", [FULL], [FULL, FULL], "vres")
    metric = VisualTextReferring()
    metric.update(one)
    report = only([one])
    assert report.metrics["ciou"] == float(metric.compute()["ciou"]) == 0.5 and report.counts["expressions"] == 2


def test_e18_a_question_without_a_target_counts_nowhere_officially() -> None:
    answers = [answer("0", [FULL], [], "perbench_vres"), answer("1", [FULL], [FULL], "perbench_vres")]
    assert only(answers, protocol="official").metrics["giou"] == pytest.approx(1.0, abs=1e-6)
    assert only(answers).metrics["giou"] == 0.5


def test_e21_detailed_captions_change_sides_officially() -> None:
    pairs = [("a red car", "a red car on the road"), ("two dogs", "two big dogs"), ("a man", "a cat")]
    there = [EvalRecord(str(n), "perbench_caption", prediction=a, reference=(b,)) for n, (a, b) in enumerate(pairs)]
    back = [EvalRecord(str(n), "perbench_caption", prediction=b, reference=(a,)) for n, (a, b) in enumerate(pairs)]
    assert only(there, protocol="official").metrics == only(back).metrics
    assert only(there).metrics["meteor_lite"] != only(back).metrics["meteor_lite"]


def test_e21_region_captions_keep_their_sides_officially_and_lose_dots_and_colons() -> None:
    answers = [
        EvalRecord("0", "region_caption", prediction="<Prompt0>: a t.v. set.", reference=("a tv set",)),
        EvalRecord("1", "region_caption", prediction="a dog", reference=("the dog",)),
    ]
    assert only(answers, protocol="official").per_sample[0]["meteor_lite"] == 1.0
    assert only(answers).per_sample[0]["meteor_lite"] < 1.0


def test_e22_recall_goes_on_after_a_pair_that_misses_and_stops_officially() -> None:
    vector = VECTORS["gcg_miou_recall_ap50"]
    table = vector["text_similarity"]
    answers = [
        EvalRecord(
            "0",
            "gcg_val",
            pred=coded([drawn(rows) for rows in vector["pred_masks"]]),
            target=coded([drawn(rows) for rows in vector["gt_masks"]]),
            phrases=tuple(vector["pred_phrases"]),
            reference_phrases=tuple(vector["gt_phrases"]),
        )
    ]
    options: dict[str, Any] = {"similarity": lambda phrase, target: table[f"{target}|{phrase}"]}
    standard, official = only(answers, **options).metrics, only(answers, protocol="official", **options).metrics
    expected, theirs = vector["expected"], vector["official"]
    assert standard["gcg_miou"] == expected["mIoU"] and standard["gcg_ap50"] == expected["AP50"]
    assert standard["gcg_recall"] == expected["recall_admissible_pairs"]
    wanted = {"gcg_miou": theirs["mIoU"], "gcg_recall": theirs["recall"], "gcg_ap50": theirs["AP50"]}
    assert official == pytest.approx(wanted | {"gcg_ap": theirs["AP"]}, abs=1e-4)


def test_e22_a_mask_without_a_phrase_loses_the_whole_image_officially() -> None:
    left, right = FULL.copy(), FULL.copy()
    left[:, 3:], right[:, :3] = False, False
    masks = {"pred": coded([left, right]), "target": coded([left, right]), "reference_phrases": ("a", "b")}
    answers = [EvalRecord("0", "gcg", phrases=("a",), **masks)]
    assert only(answers).metrics["gcg_recall"] == 0.5
    assert only(answers, protocol="official").metrics["gcg_recall"] == 0.0


def test_e23_options_are_read_by_the_standard_and_found_as_a_substring_officially() -> None:
    vector = VECTORS["mcq_substring_accuracy"]
    answers = [
        EvalRecord(str(n), "perbench/mcq", prediction=item["pred_answer"], true_answer=item["gt_answer"])
        for n, item in enumerate(vector["items"])
    ]
    standard, official = only(answers), only(answers, protocol="official")
    assert standard.metrics["mcq_accuracy"] == vector["expected_strict"]["accuracy"]
    assert [sample["choice"] for sample in standard.per_sample] == vector["expected_strict"]["parsed"]
    assert official.metrics["mcq_accuracy"] == vector["official"]["accuracy"]
    assert standard.metrics["mcq_accuracy_substring"] == vector["official"]["accuracy"]


def test_e24_both_decisions_are_kept_and_the_one_asked_for_is_reported() -> None:
    answers = of_vector("gres_no_target_explicit_flag", "grefcoco_val")
    by_mask, by_text = only(answers), only(answers, no_target_from="text")
    for report in (by_mask, by_text):
        decisions = [(one["no_target_mask"], one["no_target_text"]) for one in report.per_sample]
        assert decisions == [(False, True), (False, False), (False, True), (False, False)]
    assert (by_mask.metrics["n_acc"], by_mask.metrics["t_acc"]) == (0.0, 1.0)
    assert (by_text.metrics["n_acc"], by_text.metrics["t_acc"]) == (0.5, 0.5)


# Definitions.


def test_figures_equal_a_float64_brute_force_on_thousands_of_masks() -> None:
    answers = random_answers(0, 2500)
    both, either, ious, wanted, none = [], [], [], [], []
    for one in answers:
        pred, target, ignore = one.masks()
        keep = np.ones(SIZE, bool) if ignore is None else ~ignore
        p, g = pred.any(0) & keep, target.any(0) & keep
        both.append(np.float64((p & g).sum()))
        either.append(np.float64((p | g).sum()))
        ious.append(both[-1] / either[-1] if either[-1] else 1.0)
        wanted.append(bool(g.any()))
        none.append(not p.any())
    on, empty = np.array(wanted), np.array(none)
    expected = {
        "ciou": np.sum(both) / np.sum(either),
        "giou": np.mean(ious),
        "n_acc": empty[~on].mean(),
        "t_acc": (~empty)[on].mean(),
        **{f"pr@{level}": (np.array(ious)[on] >= level).mean() for level in (0.5, 0.6, 0.7, 0.8, 0.9)},
    }
    report = only(answers)
    assert report.metrics == pytest.approx(expected, abs=1e-11)
    assert [sample["iou"] for sample in report.per_sample] == pytest.approx(ious, abs=1e-11)
    assert report.counts["no_target"] == int((~on).sum())


@pytest.mark.parametrize("no_target_from", ["mask", "text"])
@pytest.mark.parametrize("combine", ["union", "first"])
def test_figures_are_those_of_the_metric_used_in_training(combine: Any, no_target_from: Any) -> None:
    answers = random_answers(3, 60)
    metric = ReferringSegmentation(combine=combine, no_target_from=no_target_from)
    for one in answers:
        metric.update(one)
    report = only(answers, combine=combine, no_target_from=no_target_from)
    assert report.metrics == {key: float(value) for key, value in metric.compute().items() if key in report.metrics}
    assert len(report.metrics) == 9


def test_grounded_figures_are_those_of_the_metric_used_in_training() -> None:
    answers, metric = [], GroundedCaption()
    for one in random_answers(4, 30, "gcg_val"):
        pred, target, _ = one.masks()
        phrases = tuple(f"thing {n}" for n in range(3))
        full = dataclasses.replace(one, phrases=phrases[: len(pred)], reference_phrases=phrases[: len(target)])
        metric.update(full)
        answers.append(full)
    report = only(answers)
    expected = {key: float(value) for key, value in metric.compute().items()}
    assert {key: report.metrics[key] for key in expected} == expected
    assert 0 < report.metrics["gcg_ap50"] < 1


def test_grounded_captions_without_phrases_are_judged_by_their_masks() -> None:
    metrics = only([answer(str(n), [FULL], [FULL], "gcg") for n in range(2)]).metrics
    assert metrics == {"gcg_ap50": 1.0, "gcg_ap": 1.0, "gcg_miou": 1.0}


def test_grounded_captions_with_references_are_judged_as_captions_too() -> None:
    text = "<p> a dog </p> [SEG] runs"
    answers = [answer(str(n), [FULL], [FULL], "gcg", prediction=text, reference=(text,)) for n in range(2)]
    metrics = only(answers).metrics
    assert metrics["gcg_recall"] == metrics["gcg_miou"] == metrics["meteor_lite"] == metrics["token_f1"] == 1.0
    assert "cider" in metrics


def test_an_embedding_is_asked_for_each_pair_of_phrases_once() -> None:
    asked: list[tuple[str, str]] = []

    def similarity(prediction: str, reference: str) -> float:
        asked.append((prediction, reference))
        return token_f1(prediction, reference)

    one = {"phrases": ("a dog",), "reference_phrases": ("the dog",)}
    only([answer(str(n), [FULL], [FULL], "gcg", **one) for n in range(5)], similarity=similarity)
    assert asked == [("a dog", "the dog")]


def test_yes_and_no_are_counted_as_pope_does() -> None:
    result = (("Yes, a dog.", "yes"), ("no", "yes"), ("yes", "no"), ("There is not.", "no"))
    answers = [
        EvalRecord(str(n), "pope_random", prediction=text, true_answer=true) for n, (text, true) in enumerate(result)
    ]
    standard, official = only(answers), only(answers, protocol="official")
    assert standard.metrics == {"accuracy": 0.25, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5}
    assert standard.counts["unparsed"] == 1
    assert official.metrics["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("masks", "targets", "ciou", "giou"),
    [([EMPTY], [], 1.0, 1.0), ([], [EMPTY], 1.0, 1.0), ([FULL], [FULL], 1.0, 1.0), ([FULL], [], 0.0, 0.0)],
)
def test_empty_and_full_masks_score_as_defined(masks: Any, targets: Any, ciou: float, giou: float) -> None:
    metrics = only([answer("0", masks, targets)]).metrics
    assert (metrics["ciou"], metrics["giou"]) == (ciou, giou)


def test_several_masks_are_united_and_officially_only_the_first_counts() -> None:
    left, right = FULL.copy(), FULL.copy()
    left[:3], right[3:] = False, False
    answers = [answer("0", [left, right], [FULL])]
    assert only(answers).metrics["giou"] == 1.0
    assert only(answers, combine="first").metrics["giou"] == 0.5
    assert only(answers, protocol="official").metrics["giou"] == pytest.approx(0.5, abs=1e-5)


def test_benchmarks_are_told_apart_and_figures_with_nothing_to_judge_left_out() -> None:
    answers = [
        answer("0", [FULL], [FULL]),
        EvalRecord("0", "mcq", prediction="B.", true_answer="A", choices=("red", "blue")),
        answer("1", [FULL], [FULL]),
    ]
    reports = score(answers, bootstrap=0)
    assert list(reports) == ["refcoco_val", "mcq"]
    assert "n_acc" not in reports["refcoco_val"].metrics and reports["mcq"].metrics["mcq_accuracy"] == 0.0
    assert [one.id for one in reports["refcoco_val"].records] == ["0", "1"]
    assert reports["refcoco_val"].settings["combine"] == "union"
    assert score([]) == {}


def test_a_benchmark_of_no_known_name_is_judged_by_what_its_records_hold() -> None:
    records = [
        {"id": 0, "benchmark": "mine", "text": "B", "answer": "B", "choices": ["x", "y"], "pred": [], "target": []}
    ]
    assert only([EvalRecord.from_json(record) for record in records]).kind == "mcq"
    assert only([answer("0", [FULL], [FULL], "mine"), answer("1", [], [], "mine")]).kind == "refer"


# PerBench's overall score.


def perbench(stem: str = "perbench") -> list[EvalRecord]:
    half = FULL.copy()
    half[:3] = False
    return [
        EvalRecord("c0", f"{stem}/caption", prediction="a red car here", reference=("a red car here",)),
        EvalRecord("c1", f"{stem}/caption", prediction="a dog", reference=("two cats",)),
        EvalRecord("m0", f"{stem}/mcq", prediction="A", true_answer="A"),
        EvalRecord("m1", f"{stem}/mcq", prediction="B", true_answer="A"),
        answer("v0", [half], [FULL], f"{stem}/vres"),
    ]


def test_without_java_the_overall_score_says_that_it_is_another() -> None:
    reports = score(perbench("synthperbench"), bootstrap=50)
    overall = reports["synthperbench"]
    assert list(overall.metrics) == ["perbench_overall_lite"]
    assert overall.metrics["perbench_overall_lite"] == pytest.approx((50 + 50 + 50) / 3)
    low, high = overall.intervals["perbench_overall_lite"]
    assert low < 50 < high
    assert overall.counts == {"answers": 5} and overall.per_sample == []


@pytest.mark.slow
@pytest.mark.skipif(meteor_program() is None, reason="needs Java and pycocoevalcap (extra `caption`)")
def test_the_overall_score_is_the_mean_of_meteor_choice_and_masks() -> None:
    reports = score(perbench(), bootstrap=20)
    meteor = reports["perbench/caption"].metrics["meteor"]
    assert 0 < meteor < 1 and reports["perbench/caption"].per_sample[0]["meteor"] == 1.0
    assert reports["perbench"].metrics["perbench_overall"] == pytest.approx((100 * meteor + 50 + 50) / 3)
    assert set(reports["perbench/caption"].intervals) == {"meteor", "meteor_lite", "cider", "token_f1"}


def test_two_tasks_have_no_overall_score() -> None:
    assert "perbench" not in score([one for one in perbench() if "mcq" not in one.benchmark], bootstrap=0)


def test_a_benchmark_may_not_have_the_name_of_the_overall_score() -> None:
    with pytest.raises(SailError, match="benchmark perbench is also the name"):
        score([*perbench(), answer("0", [FULL], [FULL], "perbench")], bootstrap=0)


# What changes no figure.


def everything(seed: int) -> list[EvalRecord]:
    """Answers of several kinds, mixed."""
    masks = random_answers(seed, 6)
    vres = [dataclasses.replace(one, benchmark="perbench_vres") for one in random_answers(seed + 1, 4)]
    result = ["a red car", "two dogs", "the man's hat", ""]
    words = [
        EvalRecord(f"c{n}", "region_caption", prediction=result[n], reference=(result[(seed + n) % 3],))
        for n in range(4)
    ]
    grounded = [
        dataclasses.replace(
            one,
            benchmark="gcg",
            phrases=tuple(f"p{n}" for n in range(len(one.pred))),
            reference_phrases=tuple(f"p{n}" for n in range(len(one.target))),
        )
        for one in random_answers(seed + 2, 4)
    ]
    return [*masks, *vres, *words, *grounded]


def figures(answers: list[EvalRecord], **options: Any) -> dict[str, Any]:
    reports = score(answers, **{"bootstrap": 20, **options})
    return {name: (report.metrics, report.intervals) for name, report in sorted(reports.items())}


@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.sampled_from(["standard", "official"]))
@settings(max_examples=15)
def test_the_order_of_answers_changes_no_bit(seed: int, random: Any, protocol: Any) -> None:
    answers = everything(seed)
    mixed = random.sample(answers, len(answers))
    assert figures(answers, protocol=protocol) == figures(mixed, protocol=protocol)


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=10)
def test_the_number_of_ranks_that_answered_changes_no_bit(seed: int, ranks: int) -> None:
    answers = everything(seed)
    gathered = [one for rank in range(ranks) for one in answers[rank::ranks]]
    assert figures(gathered) == figures(answers)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 17), max_size=6))
@settings(max_examples=10)
def test_answers_that_come_twice_count_once(seed: int, again: list[int]) -> None:
    answers = everything(seed)
    repeated = [*answers, *(answers[number] for number in again)]
    assert figures(repeated) == figures(answers)
    assert sum(report.counts["duplicates"] for report in score(repeated, bootstrap=0).values()) == len(again)


def test_of_two_answers_to_one_question_the_first_counts_and_other_questions_keep_theirs() -> None:
    first, second = answer("0", [FULL], [FULL]), answer("0", [], [FULL])
    other = answer("0", [], [FULL], question="Another one?")
    assert only([first, second]).metrics["giou"] == 1.0
    report = only([first, second, other])
    assert report.metrics["giou"] == 0.5 and report.counts["answers"] == 2 and report.counts["duplicates"] == 1
    assert len(report.per_sample) == len(report.records) == 2


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_the_order_of_united_masks_changes_no_bit(seed: int, random: Any) -> None:
    answers = random_answers(seed, 6)
    mixed = [
        dataclasses.replace(
            one,
            pred=tuple(random.sample(one.pred, len(one.pred))),
            target=tuple(random.sample(one.target, len(one.target))),
        )
        for one in answers
    ]
    assert only(mixed).metrics == only(answers).metrics


@given(st.integers(0, 10**6), st.sampled_from(["standard", "official"]))
@settings(max_examples=20)
def test_every_figure_lies_in_its_bounds_and_its_interval_too(seed: int, protocol: Any) -> None:
    for report in score(everything(seed), protocol=protocol, bootstrap=20).values():
        for name, value in report.metrics.items():
            most = 10 if name == "cider" else 1
            low, high = report.intervals[name]
            assert -1e-9 <= low <= high <= most + 1e-9
            assert -1e-9 <= value <= most + 1e-9


# The bootstrap.


def test_an_interval_is_the_same_again_and_another_with_another_seed() -> None:
    answers = random_answers(5, 50)
    assert only(answers, bootstrap=100).intervals == only(answers, bootstrap=100).intervals
    assert only(answers, bootstrap=100).intervals != only(answers, bootstrap=100, seed=1).intervals
    assert only(answers).intervals == {}


def test_an_interval_holds_its_figure_and_narrows_with_more_answers() -> None:
    few, many = (only(random_answers(6, count), bootstrap=400) for count in (40, 640))
    for report in (few, many):
        low, high = report.intervals["giou"]
        assert low < report.metrics["giou"] < high
    widths = [high - low for low, high in (few.intervals["giou"], many.intervals["giou"])]
    assert 2 < widths[0] / widths[1] < 8  # four times, as the square root of 16


def test_answers_that_are_all_alike_have_an_interval_of_no_width() -> None:
    report = only([answer(str(n), [FULL], [FULL]) for n in range(5)], bootstrap=30)
    assert report.intervals["giou"] == (1.0, 1.0)


@pytest.mark.parametrize("protocol", ["standard", "official"])
def test_each_draw_is_scored_like_a_set_of_its_own(protocol: Any) -> None:
    answers = sorted(random_answers(8, 12), key=lambda one: one.id)
    report = only(answers, protocol=protocol, bootstrap=5, seed=3)
    for number, drawn_counts in enumerate(np.concatenate(list(draws(12, 5, 3, "grefcoco_val")))):
        resampled = [
            dataclasses.replace(one, id=f"{one.id}-{copy}")
            for one, count in zip(answers, drawn_counts, strict=True)
            for copy in range(int(count))
        ]
        alone = only(resampled, protocol=protocol).metrics
        assert {key: report.replicates[key][number] for key in alone} == pytest.approx(alone, abs=1e-9)


def test_draws_take_as_many_answers_as_there_are_in_any_number_of_blocks() -> None:
    table = np.concatenate(list(draws(3, 1000, 0)))
    assert table.shape == (1000, 3) and (table.sum(1) == 3).all()
    assert not np.array_equal(table, np.concatenate(list(draws(3, 1000, 0, "other"))))


def test_an_interval_passes_over_draws_with_nothing_to_judge() -> None:
    assert interval(np.array([np.nan, 0.5, 0.5])) == (0.5, 0.5)
    assert interval(np.array([np.nan])) is None


# Faults.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "paper"}, "protocol must be standard or official, not 'paper'"),
        ({"no_target_from": "area"}, "no_target_from must be mask or text"),
        ({"combine": "last"}, "combine must be union or first"),
        ({"protocol": "official", "no_target_from": "text"}, "does not go with no_target_from=text"),
        ({"protocol": "official", "combine": "union"}, "does not go with combine=union"),
        ({"bootstrap": -1}, "bootstrap must be 0 or more"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options: Any, message: str) -> None:
    with pytest.raises(SailUsageError, match=message):
        score([], **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            EvalRecord("7", "mcq", prediction="A", true_answer="purple", choices=("red", "blue")),
            "answer '7' of mcq: the reference",
        ),
        (EvalRecord("7", "pope", prediction="yes", true_answer="perhaps"), "answer '7' of pope: the reference"),
        (answer("7", [FULL], [FULL], "gcg", reference_phrases=()), "answer '7' of gcg: a grounded caption's truth"),
        (answer("7", [FULL], [FULL], size=(3, 3)), "answer '7' of refcoco_val: an RLE of size"),
    ],
)
def test_an_answer_that_cannot_be_judged_is_named(bad: EvalRecord, message: str) -> None:
    with pytest.raises(SailError, match=message):
        score([bad])
