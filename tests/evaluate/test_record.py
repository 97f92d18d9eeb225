"""A judged answer as a line of JSON: read strictly, written back, and forgiving where nothing depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from sail_lightning.errors import SailError
from sail_lightning.evaluate import EvalRecord, kind_of, read_records
from sail_lightning.evaluate.benchmarks import perbench_name
from sail_lightning.generation.prediction import encode_rle
from sail_lightning.image.run_lengths import run_lengths

MASK = np.zeros((4, 5), bool)
MASK[1:3, 1:4] = True
RLE = encode_rle(MASK)
RECORD: dict[str, Any] = {
    "id": "a7",
    "benchmark": "refcoco_val",
    "question": "Please segment the cup.",
    "text": "It is [SEG].",
    "pred": [RLE],
    "target": [RLE],
    "ignore": None,
    "size": [4, 5],
}


def read(tmp_path: Path, *records: Any) -> list[EvalRecord]:
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return list(read_records(path))


def changed(**keys: Any) -> dict[str, Any]:
    return {**RECORD, **keys}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in RECORD.items() if key not in keys}


def test_a_record_is_read_and_written_back_as_it_was(tmp_path: Path) -> None:
    (answer,) = read(tmp_path, RECORD)
    assert answer.to_json() == RECORD
    pred, target, ignore = answer.masks()
    assert np.array_equal(pred, MASK[None]) and np.array_equal(target, MASK[None]) and ignore is None


def test_all_optional_keys_and_unknown_ones_survive(tmp_path: Path) -> None:
    optional = {
        "prompts": [{"type": "box", "box": [0, 0, 1, 1]}],
        "choices": ["red", "blue"],
        "answer": "A",
        "reference": ["a cup", "the cup"],
        "phrases": ["a cup"],
        "reference_phrases": ["the cup"],
        "number": 3,
    }
    (answer,) = read(tmp_path, changed(**optional))
    assert answer.to_json() == changed(**optional)


def test_a_score_is_ignored_when_read(tmp_path: Path) -> None:
    (answer,) = read(tmp_path, changed(score={"iou": 1.0}))
    assert "score" not in answer.to_json()


def test_what_changes_nothing_may_be_left_out(tmp_path: Path) -> None:
    (answer,) = read(tmp_path, without("question", "text", "ignore", "size"))
    assert answer.masks()[0].shape == (1, 4, 5)
    (numbered,) = read(tmp_path, changed(id=7))
    assert numbered.id == "7"


@pytest.mark.parametrize("pred", [None, []])
def test_a_missing_prediction_is_null_or_an_empty_list(tmp_path: Path, pred: list[Any] | None) -> None:
    (answer,) = read(tmp_path, changed(pred=pred))
    assert answer.pred == () and answer.masks()[0].shape == (0, 4, 5)


def test_runs_may_be_text_or_numbers(tmp_path: Path) -> None:
    (answer,) = read(tmp_path, changed(pred=[{"size": [4, 5], "counts": [5, 2, 2, 2, 2, 2, 5]}]))
    assert np.array_equal(answer.masks()[0][0], MASK)


def test_phrases_come_from_the_texts_where_they_are_not_given() -> None:
    answer = EvalRecord(
        "1", "gcg", prediction="<p> a cup </p> [SEG] on [SEG]", reference=("<p> the cup </p> [SEG]",), pred=(RLE, RLE)
    )
    assert answer.predicted_phrases == ("a cup", "") and answer.true_phrases == ("the cup",)
    given = EvalRecord("1", "gcg", prediction="<p> a cup </p> [SEG]", phrases=("x",), reference_phrases=("y",))
    assert given.predicted_phrases == ("x",) and given.true_phrases == ("y",)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without("id"), "line 2 has no key id"),
        (without("benchmark"), "line 2 has no key benchmark"),
        (without("pred"), "no key pred, which an answer of kind refcoco needs"),
        (without("target"), "no key target"),
        (changed(target=None), "no key target"),
        (changed(pred=RLE), "pred must be a list of COCO RLE"),
        (changed(pred=[[1, 2, 3, 4, 5, 6]]), "pred must be a list of COCO RLE"),
        (changed(ignore="none"), "ignore must be a COCO RLE"),
        (changed(size=[4, 5, 3]), "size must be"),
        (changed(size=[4, 0]), "size must be"),
        (changed(size=[10**6, 5]), r"size must be \[height, width\] \(at most 100,000 each\) or null"),
        (changed(pred=[{"size": [10**6, 5], "counts": [5]}]), "pred must be a list of COCO RLE"),
        (changed(text=3), "text must be text, not 3"),
        (changed(text="\ud83d"), "text must be text"),
        (changed(choices="red"), "choices must be a list of text"),
        (changed(size=[5, 4]), r"a mask of pred has size \[4, 5\], but the record's is \[5, 4\]"),
        (changed(benchmark="pope", answer=None), "no key answer, by which an answer of kind pope"),
        (changed(benchmark="region_caption"), "no key reference"),
        ({"id": 1, "benchmark": "mcq", "answer": "A"}, "no key text, which an answer of kind mcq needs"),
        ([1], "is not a JSON object"),
    ],
)
def test_a_fault_is_one_sentence_that_names_line_and_key(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(SailError, match=message) as fault:
        read(tmp_path, RECORD, record)
    assert "answers.jsonl line 2" in str(fault.value) and "\n" not in str(fault.value)


def test_a_line_that_is_no_json_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(RECORD) + "\n\n" + json.dumps(RECORD)[:30] + "\n")
    with pytest.raises(SailError, match="line 3 is not JSON"):
        list(read_records(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SailError, match="not UTF-8"):
        list(read_records(path))
    with pytest.raises(SailError, match="cannot be read"):
        list(read_records(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("counts", ["", "0", "01", RLE["counts"][:-2], RLE["counts"] + "5", "\u00e9", "P", [3], [21]])
def test_a_code_that_is_cut_off_or_damaged_is_refused_and_never_filled_up(counts: str | list[int]) -> None:
    answer = EvalRecord("a7", "refcoco", pred=({"size": [4, 5], "counts": counts},), size=(4, 5))
    with pytest.raises(SailError, match="answer 'a7' of refcoco: "):
        answer.masks()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_run_lengths_are_those_that_pycocotools_wrote(height: int, width: int, seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    runs = run_lengths(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T, mask)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("refcoco", "refcoco"), ("refcoco_testA", "refcoco"), ("refcoco+ val", "refcoco+")),
        *(("refcoco+testB", "refcoco+"), ("refcocog_umd_test", "refcocog"), ("gRefCOCO_val", "grefcoco")),
        *(("reasonseg-val", "reasonseg"), ("gcg_test", "gcg"), ("region_caption", "region_caption")),
        *(
            ("gres_testA", "grefcoco"),
            ("g_refcoco", "grefcoco"),
            ("reason_seg", "reasonseg"),
            ("vres", "perbench_vres"),
        ),
        *(("perbench/caption", "perbench_caption"), ("PerBench_MCQ", "perbench_mcq"), ("mcq", "mcq")),
        *(("synthperbench/vres", "perbench_vres"), ("pope_random", "pope"), ("refcocogs", "refer"), ("mine", "refer")),
    ],
)
def test_the_beginning_of_a_name_decides_the_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (("target", "choices"), "refer"),
        (("choices", "answer"), "mcq"),
        (("reference",), "region_caption"),
        (("answer",), "pope"),
        ((), "refer"),
    ],
)
def test_what_the_records_hold_decides_where_the_name_does_not(keys: tuple[str, ...], kind: str) -> None:
    assert kind_of("my benchmark", keys) == kind
    assert kind_of("gcg", keys) == "gcg"


@pytest.mark.parametrize(
    ("keys", "answers", "kind"),
    [
        (("answer",), ("yes", "No."), "pope"),
        (("answer",), ("A", "(b)", "c."), "mcq"),
        (("answer",), ("yes", "a red car"), "region_caption"),
        (("answer", "choices"), ("yes", "no"), "mcq"),
        (("answer", "masks"), ("yes",), "refer"),
    ],
)
def test_true_answers_say_what_kind_they_are(keys: tuple[str, ...], answers: tuple[str, ...], kind: str) -> None:
    assert kind_of("my benchmark", keys, answers) == kind


def test_an_answer_in_words_is_read_back_as_one() -> None:
    record = {"id": "1", "benchmark": "mine", "text": "yes", "answer": "yes"}
    for answer in (EvalRecord.from_json(record), EvalRecord("1", "mine", prediction="yes", true_answer="yes")):
        again = EvalRecord.from_json(answer.to_json())
        assert "masks" not in again.present_keys and kind_of("mine", again.present_keys, ["yes"]) == "pope"
    assert "masks" in EvalRecord.from_json({**record, "pred": [], "target": []}).present_keys


def test_a_byte_order_mark_a_null_text_and_an_empty_ignore_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"id": 1, "benchmark": "mcq", "text": None, "answer": "A"}), encoding="utf-8-sig")
    assert next(read_records(path)).prediction == ""
    (answer,) = read(tmp_path, changed(ignore=[]))
    assert answer.ignore is None


def test_the_three_tasks_of_perbench_have_one_name_in_common() -> None:
    names = ("perbench/mcq", "perbench_vres_v2", "SynthPerBench/caption", "perbench", "mcq")
    assert [perbench_name(name) for name in names] == ["perbench", "perbench_v2", "SynthPerBench", None, None]
