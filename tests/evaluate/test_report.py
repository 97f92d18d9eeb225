"""What lies in the folder of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers_by_hand import ALL, EMPTY, LEFT, RIGHT, line
from PIL import Image

from sail_lightning.evaluate import EvalRecord, Report, score
from sail_lightning.evaluate.gallery import cases, draw_case, main_score, named_image, prompt_of
from sail_lightning.evaluate.published import PUBLISHED, published
from sail_lightning.evaluate.report import scored_lines, to_json, to_markdown, write_report
from sail_lightning.sample import Box, Mask, Point, Scribble

LINES = [line("b", [LEFT], [LEFT]), line("a", [ALL], [RIGHT]), line("c", [EMPTY], [])]
CHOICE = {"id": "m", "benchmark": "mcq", "text": "B.", "choices": ["red", "blue"], "answer": "B"}


def scored(*lines: dict[str, Any], **options: Any) -> dict[str, Report]:
    return score([EvalRecord.from_json(one) for one in lines], **({"bootstrap": 50} | options))


# -- files ------------------------------------------------------------------------------------------------------------


def test_metrics_of_one_benchmark_stand_at_the_top(tmp_path: Path) -> None:
    written = write_report(tmp_path / "new" / "folder", scored(*LINES), {"weights": {"sha256": "ab"}})
    content = json.loads(written.json.read_text())
    assert content["metrics"]["ciou"] == pytest.approx((4 + 4) / (4 + 8))
    assert content["metrics"] == content["benchmarks"]["refcoco_val"]["metrics"]
    assert content["protocol"] == "standard" and content["weights"] == {"sha256": "ab"}
    low, high = content["benchmarks"]["refcoco_val"]["intervals"]["giou"]
    assert low <= content["metrics"]["giou"] <= high


def test_metrics_of_several_benchmarks_stand_by_their_names() -> None:
    content = to_json(scored(*LINES, CHOICE), {})
    assert content["metrics"]["refcoco_val/ciou"] == content["metrics"]["ciou"] == pytest.approx(2 / 3)
    assert content["metrics"]["mcq/mcq_accuracy"] == content["metrics"]["mcq_accuracy"] == 1.0
    assert content["benchmarks"].keys() == {"refcoco_val", "mcq"}
    assert content["benchmarks"]["mcq"]["metrics"]["mcq_accuracy"] == 1.0


def test_a_figure_that_two_benchmarks_have_stands_by_their_names_alone() -> None:
    other = [{**one, "benchmark": "refcocog_val"} for one in LINES[:1]]
    result = to_json(scored(*LINES, *other, CHOICE), {})["metrics"]
    assert "ciou" not in result and result["mcq_accuracy"] == 1.0
    assert (result["refcoco_val/ciou"], result["refcocog_val/ciou"]) == (pytest.approx(2 / 3), 1.0)


def test_the_overall_score_of_perbench_stands_by_its_own_name() -> None:
    caption = {"id": "c", "benchmark": "PerBench_caption", "text": "a dog", "reference": "a dog"}
    choice, vres = {**CHOICE, "benchmark": "perbench/mcq"}, line("v", [LEFT], [LEFT], benchmark="perbench vres")
    result = to_json(scored(caption, choice, vres), {})["metrics"]
    assert [key for key in result if key.startswith("perbench_overall")]
    assert len(published("perbench caption")) == len(published("PerBench/caption")) == 6


def test_each_line_has_its_score_and_keeps_what_else_it_held(tmp_path: Path) -> None:
    written = write_report(tmp_path, scored(*[{**one, "camera": "north"} for one in LINES]), {})
    lines = [json.loads(one) for one in written.per_sample.read_text().splitlines()]
    assert [one["id"] for one in lines] == ["b", "a", "c"]
    assert [one["score"]["iou"] for one in lines] == [1.0, 0.5, 1.0]
    assert all(one["camera"] == "north" for one in lines)


def test_a_written_file_is_scored_to_the_same_figures_again() -> None:
    reports = scored(*LINES, CHOICE)
    again = scored(*scored_lines(reports.values()))
    assert to_json(again, {}) == to_json(reports, {})


def test_lines_come_in_the_order_of_their_numbers() -> None:
    reports = scored(*({**one, "number": 9 - place} for place, one in enumerate(LINES)))
    assert [one["number"] for one in scored_lines(reports.values())] == [7, 8, 9]


@pytest.mark.parametrize("numbers", [(1, "2", 0), (3, None, 1), (2, 1)])
def test_a_number_that_is_not_ours_orders_nothing(numbers: tuple[Any, ...]) -> None:
    lines = [{**one, **({"number": numbers[place]} if place < len(numbers) else {})} for place, one in enumerate(LINES)]
    assert [one["id"] for one in scored_lines(scored(*lines).values())] == ["b", "a", "c"]


def test_half_a_character_in_a_foreign_key_is_written_escaped(tmp_path: Path) -> None:
    written = write_report(tmp_path, scored({**LINES[0], "note": "\ud83d é"}), {})
    text = written.per_sample.read_text(encoding="utf-8")
    assert json.loads(text)["note"] == "\ud83d é" and "\\ud83d" in text


def test_figures_are_on_disk_before_the_gallery_is_drawn(tmp_path: Path) -> None:
    def broken(answer: EvalRecord) -> None:
        raise RuntimeError("no picture")

    with pytest.raises(RuntimeError):
        write_report(tmp_path, scored(*LINES), {}, broken, cases=1)
    assert "ciou" in (tmp_path / "report.md").read_text() and "ciou" in (tmp_path / "report.json").read_text()


# -- report.md --------------------------------------------------------------------------------------------------------


def test_a_report_says_that_questions_are_missing() -> None:
    result = to_markdown(scored(*LINES), {"questions": 5})
    assert "**Incomplete: 3 of 5 questions were answered.**" in result
    assert "Incomplete" not in to_markdown(scored(*LINES), {"questions": 3})


def test_a_report_names_the_official_protocol_and_its_faults() -> None:
    assert "faults included" in to_markdown(scored(*LINES, protocol="official"), {})
    assert "faults included" not in to_markdown(scored(*LINES), {})


def test_published_figures_stand_below_the_own_one_and_are_labelled() -> None:
    rows = [row for row in to_markdown(scored(*LINES), {}).splitlines() if row.startswith("|")]
    own = next(place for place, row in enumerate(rows) if row.startswith("| **this run**"))
    assert rows[own] == "| **this run** | | 0.6667 | measured |"
    assert rows[own + 1] == "| Pixel-SAIL | 0.5B | 0.779 | published: Pixel-SAIL, arXiv:2504.10465v1, table 1 |"


def test_what_the_paper_does_not_measure_has_no_published_rows() -> None:
    assert "published" not in to_markdown(scored(CHOICE), {})
    assert published("synthperbench_caption") == [] and published("refcoco") == []


def test_a_text_with_bars_does_not_break_a_table() -> None:
    result = to_markdown(scored(*LINES), {"weights": {"path": "a|b"}})
    assert "| weights path | a\\|b |" in result


# -- the paper's figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["refcoco+_testB", "refcoco_plus_testB", "RefCOCO+_testb"])
def test_benchmarks_are_found_by_any_of_their_names(name: str) -> None:
    found = {(row.model, row.size): row.value for row in published(name)}
    assert found["Pixel-SAIL", "3B"] == pytest.approx(0.72) and len(found) == 15


def test_published_overall_figures_are_the_mean_of_their_parts() -> None:
    by_model: dict[tuple[str, str], dict[str, float]] = {}
    for row in PUBLISHED:
        if row.table == 3:
            by_model.setdefault((row.model, row.size), {})[row.metric] = row.value
    assert len(by_model) == 6
    for parts in by_model.values():
        overall = 100 * (parts["meteor"] + parts["mcq_accuracy"] + (parts["ciou"] + parts["giou"]) / 2) / 3
        assert parts["perbench_overall"] == pytest.approx(overall, abs=0.06)


# -- gallery ----------------------------------------------------------------------------------------------------------


def test_best_worst_and_random_cases_are_chosen_by_their_own_score() -> None:
    scores = [{"iou": value} for value in (0.5, 1.0, 0.0, 0.7)]
    chosen = cases(scores, 2)
    assert chosen["best"] == [1, 3] and chosen["worst"] == [2, 0]
    assert len(set(chosen["random"])) == 2 and chosen == cases(scores, 2)


def test_answers_without_a_score_are_neither_best_nor_worst() -> None:
    chosen = cases([{"iou": 0.2}, {}, {"iou": None}], 3)
    assert chosen["best"] == chosen["worst"] == [0] and sorted(chosen["random"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("result", "value"), [({"iou": 0.25}, 0.25), ({"correct": True}, 1.0), ({"meteor_lite": 0.5, "cider": 9.0}, 0.5)]
)
def test_an_answers_own_score(result: dict[str, Any], value: float) -> None:
    assert main_score(result) == value


def test_gallery_is_one_image_for_each_kind_and_each_benchmark(tmp_path: Path) -> None:
    one = write_report(tmp_path / "one", scored(*LINES), {}, cases=2)
    assert [path.name for path in one.gallery] == ["best.png", "worst.png", "random.png"]
    assert "![worst](gallery/worst.png)" in one.markdown.read_text()
    two = write_report(tmp_path / "two", scored(*LINES, CHOICE), {}, cases=1)
    assert {path.name for path in two.gallery} >= {"refcoco_val-best.png", "mcq-worst.png"}
    assert all(Image.open(path).width > 500 for path in (*one.gallery, *two.gallery))


def test_truth_stands_left_and_the_answer_right() -> None:
    answer = EvalRecord.from_json(line("a", [RIGHT], [LEFT]))
    pixels = np.asarray(draw_case(answer, {"iou": 0.0}, lambda one: np.zeros((2, 4, 3), np.uint8)))
    red = pixels[..., 0] > 100
    half = 256 // 2
    assert red[10, 40] and not red[10, half + 40]
    assert not red[10, 260 + 40] and red[10, 260 + half + 40]


def test_an_image_that_is_not_there_or_of_another_size_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), (9, 9, 9)).save(tmp_path / "right.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    (tmp_path / "broken.png").write_text("no picture")
    found = [
        named_image(EvalRecord.from_json(line("a", [], [], image=str(tmp_path / name))))
        for name in ("right.png", "other.png", "broken.png", "gone.png")
    ]
    assert found[0] is not None and found[0].shape == (2, 4, 3)
    assert found[1:] == [None, None, None]
    assert named_image(EvalRecord.from_json(line("a", [], []))) is None


def test_prompts_are_read_as_they_are_written() -> None:
    assert prompt_of({"id": 2, "box": [1, 2, 3, 4]}) == Box(1, 2, 3, 4, 2)
    assert prompt_of({"id": 0, "point": [1, 2]}) == Point(1, 2, 0)
    assert prompt_of({"id": 1, "scribble": [[1, 2], [3, 4]]}) == Scribble(((1, 2), (3, 4)), 1)
    mask = prompt_of({"id": 0, "mask": line("a", [LEFT], [])["pred"][0]})
    assert isinstance(mask, Mask) and isinstance(mask.mask, np.ndarray) and mask.mask.sum() == 4


@pytest.mark.parametrize(
    "record",
    [
        *("box", {"box": [1]}, {"mask": "file.png"}, {"mask": {"counts": "x"}}, {"id": 1}),
        *({"box": {"x0": 0, "y0": 0, "x1": 3, "y1": 2}}, {"box": ["0", "0", "3", "2"]}, {"box": [None, 0, 3, 2]}),
        *(
            {"point": [float("nan"), 1]},
            {"point": [1e300, 1]},
            {"scribble": [[0, 1], "ab"]},
            {"id": "x", "box": [0] * 4},
        ),
        {"mask": {"size": [100_000, 100_000], "counts": [10**10]}},
    ],
)
def test_prompts_in_other_forms_are_not_drawn(record: Any, tmp_path: Path) -> None:
    assert prompt_of(record, (2, 4)) is None
    report = scored(line("a", [LEFT], [LEFT], prompts=[record]), bootstrap=0)
    assert len(write_report(tmp_path, report, {}, cases=1).gallery) == 3


def test_any_name_and_any_size_can_be_drawn(tmp_path: Path) -> None:
    named = line("a", [LEFT], [LEFT], image="x" * 5000, benchmark="b" * 5000)
    vast = line("a", [], [], size=[100_000, 100_000], benchmark="vast")
    tall = {"size": [90_000, 1], "counts": [0, 90_000]}
    long = {**line("a", [], []), "pred": [tall], "target": [tall], "size": None}
    assert len(write_report(tmp_path, scored(named, vast, long, bootstrap=0), {}, named_image, 1).gallery) == 9
