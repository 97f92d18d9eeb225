"""Exact match, token F1 and the reading of multiple-choice answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_lightning.errors import SailError
from sail_lightning.evaluate import EvalRecord, ExactMatch, MultipleChoiceAccuracy, TokenF1, parse_choice, token_f1
from sail_lightning.evaluate.metrics.text import normalise, says_no_target, strip_markup

COLOURS = ("red", "green", "blue circle", "a dark blue circle")
WORDS = st.lists(st.sampled_from(["red", "Red,", "circle", "a", "the", "...", "[SEG]", "<p>"]), max_size=6).map(
    " ".join
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<p> red circle </p> [SEG].<|endoftext|>", "red circle ."),
        ("<Prompt0> is  a\ncup", "is a cup"),
        ("2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
    ],
)
def test_markup_is_stripped_and_other_text_kept(text: str, words: str) -> None:
    assert strip_markup(text) == words


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Red, circle!", "the red circle"),
        ("dark-blue", "darkblue"),
        ("1 + 1 = 2", "1 1 2"),
        ("“Tasse”\tvoll…", "tasse voll"),
        ("...", ""),
    ],
)
def test_normalisation_lowers_case_and_drops_punctuation(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("a red circle", "a red circle", 1.0),
        ("red", "a red circle", 0.5),  # precision 1, recall 1/3
        ("red red", "red", 2 / 3),  # a token counts as often as it occurs
        ("green", "red", 0.0),
        ("", "red", 0.0),
        ("...", "", 1.0),
    ],
)
def test_token_f1_by_hand(prediction: str, reference: str, f1: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(f1)


@given(WORDS, WORDS)
@settings(max_examples=100, deadline=None)
def test_token_f1_is_symmetric_bounded_and_one_for_equal_texts(left: str, right: str) -> None:
    assert token_f1(left, right) == token_f1(right, left)
    assert 0 <= token_f1(left, right) <= 1
    assert token_f1(left, left) == 1
    if normalise(left) == normalise(right):
        assert token_f1(left, right) == 1


def said(prediction: str, true_answer: str, choices: Sequence[str] = ()) -> EvalRecord:
    return EvalRecord(prediction=prediction, true_answer=true_answer, choices=tuple(choices))


def test_exact_match_and_token_f1_are_means_over_answers() -> None:
    exact, f1 = ExactMatch(), TokenF1()
    for prediction, reference in [("Red circle.", "red circle"), ("red", "a red circle"), ("green", "red")]:
        exact.update(said(prediction, reference))
        f1.update(said(prediction, reference))
    assert float(exact.compute()["exact_match"]) == pytest.approx(1 / 3)
    assert float(f1.compute()["token_f1"]) == pytest.approx(0.5, abs=1e-11)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_answers_changes_no_bit(pairs: list[tuple[str, str]], random: Any) -> None:
    first, second = TokenF1(), TokenF1()
    for pair in pairs:
        first.update(said(*pair))
    for pair in random.sample(pairs, len(pairs)):
        second.update(said(*pair))
    assert torch.equal(first.compute()["token_f1"], second.compute()["token_f1"])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # at the start
        ("A", "A"),
        ("c", "C"),
        ("B. A red car", "B"),
        ("D. All of them", "D"),
        ("(b) red", "B"),
        ("C) a cup", "C"),
        ("B: red", "B"),
        ("B - red", "B"),
        ("D, because all are", "D"),
        ("B .", "B"),
        ("B because it is red", "B"),
        ("  B.<|endoftext|>", "B"),
        # after "answer is"
        ("The answer is B.<|endoftext|>", "B"),
        ("the answer is: (c)", "C"),
        ("Answer is option D", "D"),
        ("The answer is A because it is red", "A"),
        ("A. looks right, but the answer is B.", "B"),
        ("The answer is A. No, the answer is C.", "C"),
        # declared in another way
        ("Answer: B", "B"),
        ("Answer:B", "B"),
        ("**Answer:** B", "B"),
        ("answer - (c)", "C"),
        ("Option B", "B"),
        ("option B.", "B"),
        ("option b.", "B"),
        ("The answer is **B**.", "B"),
        ("The correct option is B.", "B"),
        ("The correct choice is B.", "B"),
        ("I choose B", "B"),
        ("I choose option B because it is red", "B"),
        ("B. Option A is wrong", "B"),
        ("Option A is wrong, so the answer is B", "B"),
        ("Option A or option B", None),
        ("I have options.", None),
        ("any option I see", None),
        ("I choose a red car", None),
        ("Answer: a red car", None),
        ("Answer: not clear", None),
        # marked
        ("**B**", "B"),
        ("**B.** red", "B"),
        ("[B]", "B"),
        ("[b] red", "B"),
        # in parentheses
        ("It is the red one (B)", "B"),
        ("I think ( b ) fits, so (B)", "B"),
        ("either (A) or (B)", None),
        # words that are no letters
        ("A red car", None),
        ("a", "A"),
        ("I think so", None),
        ("The answer is a red car", None),
        ("the answer is not clear", None),
        ("Because", None),
        ("B2", None),
        ("", None),
        ("[SEG]", None),
    ],
)
def test_an_option_letter_is_read_from_the_answer(answer: str, letter: str | None) -> None:
    assert parse_choice(answer) == letter


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        ("green", COLOURS, "B"),
        ("Blue circle.", COLOURS, "C"),
        ("A dark blue circle", COLOURS, "D"),  # "A" is an article here
        ("The answer is a dark blue circle.", COLOURS, "D"),
        ("Answer: A dark blue circle", COLOURS, "D"),
        ("I choose green", COLOURS, "B"),
        ("circle", COLOURS, None),  # part of two options, the whole of none
        ("B road", ("B road", "T junction"), "A"),  # the option's text beats a letter that may be a word
        ("red", ("A. red", "B. green"), "A"),
        ("red", ("red", "Red!"), None),  # the text of two options
        ("E. yellow", COLOURS, None),  # no such option
        ("E because", COLOURS, None),
        ("The answer is F, or B", COLOURS, None),
        ("It shows (Z) and (B)", COLOURS, "B"),
    ],
)
def test_the_options_decide_where_the_letter_does_not(
    answer: str, choices: tuple[str, ...], letter: str | None
) -> None:
    assert parse_choice(answer, choices) == letter


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *(("No target [SEG].", True), ("There is no target", True), ("No-target", True), ("no <p> target </p>", True)),
        *(("piano target", False), ("notarget", False), ("no targeted one", False), ("", False)),
    ],
)
def test_no_target_is_said_in_whole_words(text: str, says: bool) -> None:
    assert says_no_target(text) is says


@given(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_is_one_of_the_options_or_none(text: str, choices: list[str]) -> None:
    letter = parse_choice(text, choices)
    assert letter is None or letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices) or 26]


def test_accuracy_accepts_a_reference_as_letter_or_text() -> None:
    metric = MultipleChoiceAccuracy()
    metric.update(said("B", "green", COLOURS))
    metric.update(said("green", "B. green", COLOURS))
    metric.update(said("red", "B", COLOURS))
    metric.update(said("no idea", "A", COLOURS))
    assert float(metric.compute()["mcq_accuracy"]) == 0.5


def test_a_reference_that_names_no_option_is_a_fault_of_the_data() -> None:
    with pytest.raises(SailError, match="'yellow' names no option among"):
        MultipleChoiceAccuracy().update(said("A", "yellow", COLOURS))


def test_more_options_than_letters_are_refused() -> None:
    with pytest.raises(SailError, match="27 options"):
        MultipleChoiceAccuracy().update(said("A", "A", [str(number) for number in range(27)]))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("metric", [ExactMatch(), TokenF1(), MultipleChoiceAccuracy()])
def test_without_answers_the_figure_is_nan(metric: ExactMatch) -> None:
    assert all(math.isnan(value) for value in metric.compute().values())
