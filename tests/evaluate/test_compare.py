"""Two runs side by side: what differs, and whether chance explains it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from answers_by_hand import ALL, EMPTY, LEFT, RIGHT, line
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.errors import SailError
from sail_lightning.evaluate import EvalRecord, score
from sail_lightning.evaluate.comparison import compare, sign_flip, to_markdown

GUESSES = (LEFT, RIGHT, ALL, EMPTY, "1000/1000")


def run(*guesses: str, benchmark: str = "refcoco_val", start: int = 0) -> list[EvalRecord]:
    """Answers to the same questions, numbered from `start`; all mean the left half."""
    lines = [line(f"{number:03d}", [guess], [LEFT], benchmark=benchmark) for number, guess in enumerate(guesses, start)]
    return [EvalRecord.from_json(one) for one in lines]


def drawn(seed: int, count: int, right: float) -> list[str]:
    rng = np.random.default_rng(seed)
    return [LEFT if rng.random() < right else RIGHT for _ in range(count)]


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_both_runs_are_those_of_their_own_reports() -> None:
    one, other = run(LEFT, ALL, RIGHT), run(LEFT, LEFT, ALL)
    found = compare(one, other, bootstrap=20)["refcoco_val"].figures
    for name, value in score(one, bootstrap=0)["refcoco_val"].metrics.items():
        assert found[name].first == value
        assert found[name].second == score(other, bootstrap=0)["refcoco_val"].metrics[name]
        assert found[name].difference == found[name].second - value


def test_a_run_does_not_differ_from_itself() -> None:
    one = run(*drawn(0, 30, 0.5))
    found = compare(one, one, bootstrap=200)["refcoco_val"]
    for figure in found.figures.values():
        assert (figure.difference, figure.low, figure.high, figure.p) == (0, 0, 0, 1)
    assert found.paired is not None and found.paired.p == 1 and found.paired.same == 30
    assert found.changes == []


def test_the_order_of_answers_changes_nothing() -> None:
    one, other = run(*drawn(0, 40, 0.5)), run(*drawn(1, 40, 0.6))
    assert compare(one, other, bootstrap=100, changed=0) == compare(
        one[::-1], other[7:] + other[:7], bootstrap=100, changed=0
    )


@given(st.lists(st.sampled_from(GUESSES), min_size=1, max_size=8), st.lists(st.sampled_from(GUESSES), min_size=8))
def test_runs_that_are_swapped_differ_the_other_way(first: list[str], second: list[str]) -> None:
    one, other = run(*first), run(*second[: len(first)])
    there, back = compare(one, other, bootstrap=20)["refcoco_val"], compare(other, one, bootstrap=20)["refcoco_val"]
    for name, figure in there.figures.items():
        assert back.figures[name].difference == -figure.difference
        assert back.figures[name].p == figure.p
    assert there.paired is not None and back.paired is not None
    assert (there.paired.better, there.paired.worse) == (back.paired.worse, back.paired.better)
    assert there.paired.p == pytest.approx(back.paired.p)


def test_pairing_finds_a_difference_that_the_two_intervals_hide() -> None:
    guesses = drawn(0, 400, 0.5)
    better = [LEFT if place % 40 == 0 else guess for place, guess in enumerate(guesses)]
    one, other = run(*guesses), run(*better)
    figure = compare(one, other)["refcoco_val"].figures["giou"]
    intervals = [score(answers)["refcoco_val"].intervals["giou"] for answers in (one, other)]
    assert intervals[1][0] < intervals[0][1]  # they overlap
    assert figure.low is not None and figure.low > 0 and figure.p is not None and figure.p < 0.05


def test_chance_is_not_called_significant() -> None:
    small = [
        compare(run(*drawn(seed, 100, 0.5)), run(*drawn(1000 + seed, 100, 0.5)), bootstrap=200)["refcoco_val"].paired
        for seed in range(40)
    ]
    assert sum(one is not None and one.p < 0.05 for one in small) <= 6


# -- what is compared -------------------------------------------------------------------------------------------------


def test_only_questions_that_both_answered_are_compared() -> None:
    one, other = run(LEFT, RIGHT, RIGHT, RIGHT), run(LEFT, LEFT, LEFT, start=2)
    found = compare(one, other, bootstrap=0)["refcoco_val"]
    assert (found.questions, found.only_first, found.only_second) == (2, 2, 1)
    assert found.figures["giou"].first == 0 and found.figures["giou"].second == 1


def test_one_question_with_another_truth_is_another_question() -> None:
    one, other = run(LEFT, LEFT), run(LEFT, LEFT)
    moved = EvalRecord.from_json(line("001", [LEFT], [RIGHT]))
    found = compare(one, [other[0], moved], bootstrap=0)["refcoco_val"]
    assert (found.questions, found.only_first, found.only_second) == (1, 1, 1)


def test_of_two_answers_to_one_question_the_first_is_compared_as_it_is_scored() -> None:
    twice = run(LEFT) + run(RIGHT)
    found = compare(twice, twice, bootstrap=0)["refcoco_val"]
    assert (found.questions, found.figures["giou"].first, found.only_first) == (1, 1.0, 0)


def test_a_question_that_the_data_hold_twice_is_compared_twice() -> None:
    def numbered(answers: list[EvalRecord], *numbers: int) -> list[EvalRecord]:
        return [replace(one, extra={"number": number}) for one, number in zip(answers, numbers, strict=True)]

    one = numbered(run(LEFT) + run(RIGHT) + run(RIGHT), 9, 10, 10)
    found = compare(one, numbered(run(LEFT) + run(LEFT), 11, 3), bootstrap=0)["refcoco_val"]
    assert (found.questions, found.only_first, found.only_second) == (2, 0, 0)
    assert (found.figures["giou"].first, found.figures["giou"].second) == (0.5, 1.0)


def test_one_mask_written_in_two_ways_is_one_truth() -> None:
    listed = line("000", [LEFT], [])
    listed["target"] = [{"size": [2, 4], "counts": [0, 4, 4]}]
    assert compare(run(LEFT), [EvalRecord.from_json(listed)], bootstrap=0)["refcoco_val"].questions == 1


def test_the_first_mask_alone_may_be_compared() -> None:
    both = [[EvalRecord.from_json(line("a", [RIGHT, LEFT], [LEFT]))] for _ in range(2)]
    assert compare(*both, combine="first", bootstrap=0)["refcoco_val"].figures["giou"].first == 0
    assert compare(*both, bootstrap=0)["refcoco_val"].figures["giou"].first == 0.5


def test_runs_that_share_nothing_are_refused() -> None:
    with pytest.raises(SailError, match="the two runs share no question"):
        compare(run(LEFT), run(LEFT, benchmark="refcocog_val"))


def test_benchmarks_are_compared_one_by_one() -> None:
    one = run(LEFT, LEFT) + run(RIGHT, benchmark="refcocog_val")
    other = run(LEFT, RIGHT) + run(LEFT, benchmark="refcocog_val")
    found = compare(one, other, bootstrap=10)
    assert {name: item.figures["giou"].difference for name, item in found.items()} == {
        "refcoco_val": -0.5,
        "refcocog_val": 1.0,
    }


def test_both_runs_are_judged_by_the_same_protocol() -> None:
    lines: list[Any] = [line("a", [RIGHT, LEFT], [LEFT, RIGHT])]
    both = [[EvalRecord.from_json(one) for one in lines] for _ in range(2)]
    assert compare(*both, bootstrap=0)["refcoco_val"].figures["giou"].first == 1
    official = compare(*both, protocol="official", bootstrap=0)["refcoco_val"].figures["giou"]
    assert official.first == official.second == pytest.approx(0.5, abs=1e-5)


# -- what changed -----------------------------------------------------------------------------------------------------


def test_what_changed_most_comes_first_and_what_did_not_is_left_out() -> None:
    one, other = run(LEFT, ALL, LEFT, LEFT), run(LEFT, LEFT, RIGHT, "1000/1000")
    changes = compare(one, other, bootstrap=0)["refcoco_val"].changes
    assert [(change.id, change.first, change.second) for change in changes] == [
        ("002", 1.0, 0.0),
        ("001", 0.5, 1.0),
        ("003", 1.0, 0.5),
    ]
    assert len(compare(one, other, bootstrap=0, changed=1)["refcoco_val"].changes) == 1


def test_the_table_shows_both_runs_and_marks_what_chance_does_not_explain() -> None:
    result = to_markdown(compare(run(*[RIGHT] * 20), run(*[LEFT] * 20)), "old", "new|er")
    assert "A is `old`, B is `new|er`" in result
    row = next(row for row in result.splitlines() if row.startswith("| `giou`"))
    assert row.startswith("| `giou` | 0.0000 | 1.0000 | +1.0000 | +1.0000 to +1.0000 |") and row.endswith("* |")
    assert "20 better, 0 worse, 0 the same" in result


# -- sign-flip permutation --------------------------------------------------------------------------------------------

differences = st.lists(st.sampled_from([-1.0, -0.5, -0.1, 0.0, 0.1, 0.3, 1.0]), max_size=9).map(np.array)


@given(differences)
def test_p_of_few_differences_is_exact(gain: np.ndarray) -> None:
    sums = [abs(float(np.dot(signs, gain))) for signs in product((1, -1), repeat=len(gain))]
    exact = float(np.mean([value >= abs(gain.sum()) - 1e-9 for value in sums])) if len(gain) else 1.0
    assert sign_flip(gain) == pytest.approx(exact)


def test_p_of_many_differences_is_near_the_exact_one() -> None:
    gain = np.random.default_rng(3).normal(0.3, 1, 13)
    signs = np.array(list(product((1, -1), repeat=13)))
    exact = float((np.abs(signs @ gain) >= abs(gain.sum()) - 1e-12).mean())
    assert sign_flip(gain, rounds=4000) == pytest.approx(exact, abs=0.03)


def test_p_is_never_zero() -> None:
    assert 0 < sign_flip(np.ones(200)) < 0.001
