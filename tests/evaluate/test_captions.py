"""Caption metrics: words, stems, METEOR (both, each under its own name) and CIDEr."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sail_lightning.errors import SailError
from sail_lightning.evaluate import Cider, EvalRecord, Meteor, MeteorLite
from sail_lightning.evaluate.metrics import meteor
from sail_lightning.evaluate.metrics.cider import cider_scores
from sail_lightning.evaluate.metrics.meteor import meteor_counts, meteor_program, meteor_score
from sail_lightning.evaluate.metrics.meteor_lite import aligned, meteor_lite
from sail_lightning.evaluate.metrics.stemming import stem
from sail_lightning.evaluate.metrics.words import words


def caption(prediction: str, references: str | list[str]) -> EvalRecord:
    true = (references,) if isinstance(references, str) else tuple(references)
    return EvalRecord(prediction=prediction, reference=true)


needs_meteor = pytest.mark.skipif(meteor_program() is None, reason="needs Java and pycocoevalcap (extra `caption`)")

VOCABULARY = words(
    "a the dog dogs cat red car automobile runs running run quickly fast on in of big large small little man person "
    "woman sits sitting next to beside tree trees green grass standing wearing shirt blue jacket holding phone child"
)
tokens = st.lists(st.sampled_from(VOCABULARY), max_size=12)
some_tokens = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12)
corpora = st.lists(st.tuples(tokens, st.lists(some_tokens, min_size=1, max_size=3)), min_size=1, max_size=6)

SENTENCES = (
    "A dog, running on the grass.",
    "The man's red t-shirt isn't clean; it's dirty!",
    "Two cats (one black, one white) sit.",
    "I can't see. He cannot go, they won't.",
    "Mr. Smith lives in the U.S. and drinks at 10:30 a.m. daily.",
    "1,000.5 people and 3/4 of and/or 12/25/2010",
    "A \"big\" sign says 'STOP' here -- really...",
    "50% off $20 & more @ home #1",
    "It's gonna be gotta wanna lemme gimme",
    "rock 'n' roll o'clock 'tis the '80s",
    "the boys\u2019 \u201cquoted\u201d text \u2014 dash \u2013 here",
    "e.g. this, i.e. that, etc.",
    "left-most 2-year-old boy w/glasses",
    "a man in a no. 7 jersey says no.",
    "hello!!! what??",
    "he'd they'll we've I'm you're y'all ain't",
    "J. Smith, Ph.D. and Sgt. Pepper (a.k.a. him)",
    "yes.no maybe me@x.com",
    "12th and 2nd to last of 20-30 people",
    "caf\u00e9 na\u00efve \u4e2d\u6587 under_score",
)


def corpus(size: int, seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Random captions with one to three references; some captions are empty, and one equals its reference."""
    rng = random.Random(seed)
    predictions = [rng.choices(VOCABULARY, k=rng.randint(0, 14)) for _ in range(size)]
    references = [
        [rng.choices(VOCABULARY, k=rng.randint(1, 14)) for _ in range(rng.randint(1, 3))] for _ in range(size)
    ]
    predictions[3] = references[3][0]
    return predictions, references


def as_coco(
    predictions: list[list[str]], references: list[list[list[str]]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return (
        {number: [" ".join(one) for one in sample] for number, sample in enumerate(references)},
        {number: [" ".join(one)] for number, one in enumerate(predictions)},
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, running.", "a dog running"),
        ("The man's shirt isn't clean", "the man 's shirt is n't clean"),
        ("He cannot (really)", "he can not -lrb- really -rrb-"),
        ("at 10:30 a.m. in the U.S.", "at 10:30 a.m. in the u.s."),
        ("a t-shirt -- no...", "a t-shirt no"),
        ("<p> a cat </p> [SEG] sits<|endoftext|>", "a cat sits"),
        ("<Prompt0>: a cat", "a cat"),
        ("", ""),
    ],
)
def test_words_are_those_of_the_penn_treebank_without_marks(text: str, expected: str) -> None:
    assert " ".join(words(text)) == expected


@needs_meteor
@pytest.mark.slow
def test_words_are_those_of_the_tokenizer_of_the_coco_caption_evaluation() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    theirs = PTBTokenizer().tokenize({n: [{"caption": sentence}] for n, sentence in enumerate(SENTENCES)})
    assert [" ".join(words(sentence)) for sentence in SENTENCES] == [theirs[n][0] for n in range(len(SENTENCES))]


@given(st.text(max_size=60))
def test_words_hold_no_space_and_no_capital(text: str) -> None:
    assert all(word and not any(char.isspace() for char in word) and word == word.lower() for word in words(text))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        *(("caresses", "caress"), ("ponies", "poni"), ("cats", "cat"), ("agreed", "agre"), ("plastered", "plaster")),
        *(("motoring", "motor"), ("sing", "sing"), ("conflated", "conflat"), ("hopping", "hop"), ("falling", "fall")),
        *(("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"), ("rational", "ration")),
        *(("digitizer", "digit"), ("vietnamization", "vietnam"), ("hopefulness", "hope"), ("triplicate", "triplic")),
        *(("electrical", "electr"), ("adjustment", "adjust"), ("adoption", "adopt"), ("effective", "effect")),
        *(("probate", "probat"), ("rate", "rate"), ("controlling", "control"), ("roll", "roll"), ("is", "is")),
        ("t-shirts", "t-shirts"),
    ],
)
def test_stems_are_those_of_porters_paper(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_meteor_lite_is_the_formula_with_its_stated_parameters() -> None:
    # the dogs | running on | grass; "dogs" and "running" by their stems
    prediction, reference = words("the dogs are running on grass"), words("the dog runs on the grass")
    matches, chunks = 5, 3
    precision = recall = matches / 6
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert meteor_lite(prediction, [reference]) == pytest.approx(mean * (1 - 0.5 * (chunks / matches) ** 3))


def test_meteor_lite_weighs_recall_nine_times_as_much_as_precision() -> None:
    long, short = ["red", "car", "b", "c"], ["red", "car"]
    assert meteor_lite(long, [short]) > meteor_lite(short, [long])


def test_meteor_lite_takes_the_best_reference() -> None:
    good, bad = ["red", "car"], ["blue", "dog"]
    assert meteor_lite(good, [bad, good]) == 1.0


def test_words_match_exactly_before_they_match_by_stem() -> None:
    assert aligned(["dogs", "dog"], ["dog", "dogs"]) == {0: 1, 1: 0}
    assert aligned(["running"], ["runs"]) == {0: 0}


def test_long_runs_match_first() -> None:
    assert aligned(["the", "red", "car"], ["the", "dog", "the", "red", "car"]) == {0: 2, 1: 3, 2: 4}


@given(tokens, some_tokens)
def test_meteor_lite_lies_between_zero_and_one_and_is_one_for_the_reference_itself(
    prediction: list[str], reference: list[str]
) -> None:
    assert 0 <= meteor_lite(prediction, [reference]) <= 1
    assert meteor_lite(reference, [reference]) == 1
    places = aligned(prediction, reference)
    assert len(set(places.values())) == len(places)


@given(tokens, some_tokens)
def test_a_word_that_is_in_the_reference_is_never_left_over(prediction: list[str], reference: list[str]) -> None:
    places = aligned(prediction, reference)
    left = {prediction[place] for place in range(len(prediction)) if place not in places}
    assert not left & {reference[place] for place in range(len(reference)) if place not in places.values()}


@needs_meteor
@pytest.mark.slow
def test_meteor_is_that_of_its_own_program_for_each_caption_and_for_all() -> None:
    from pycocoevalcap.meteor.meteor import Meteor as Program

    predictions, references = corpus(150, seed=0)
    table = meteor_counts(predictions, references)
    everything, each = Program().compute_score(*as_coco(predictions, references))
    assert meteor_score(table) == pytest.approx(np.array(each), abs=1e-12)
    assert float(meteor_score(table.sum(0))) == pytest.approx(everything, abs=1e-12)
    assert 0 < everything < 1 and each[3] == 1.0


@needs_meteor
@pytest.mark.slow
def test_the_meteor_metric_needs_java_once_and_ignores_the_order_of_captions() -> None:
    captions = [("A red car.", "the red automobile"), ("no dog", ["a cat", "no dogs"]), ("", "a man")]
    results = []
    for order in (captions, captions[::-1]):
        metric = Meteor()
        for prediction, references in order:
            metric.update(caption(prediction, references))
        results.append(float(metric.compute()["meteor"]))
    assert results[0] == results[1] and 0 < results[0] < 1


def test_without_java_meteor_is_refused_and_no_other_figure_takes_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor, "meteor_program", lambda: None)
    metric = Meteor()
    metric.update(caption("a dog", "a dog"))
    with pytest.raises(SailError, match="needs Java and pycocoevalcap"):
        metric.compute()
    other = MeteorLite()
    other.update(caption("a dog", "a dog"))
    assert set(other.compute()) == {"meteor_lite"}


def test_cider_is_that_of_pycocoevalcap_on_the_same_words() -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    for seed in range(3):
        predictions, references = corpus(120, seed)
        everything, each = cider.Cider().compute_score(*as_coco(predictions, references))
        scores = cider_scores(predictions, references)
        assert scores == pytest.approx(list(each), abs=1e-9)
        assert sum(scores) / len(scores) == pytest.approx(everything, abs=1e-9)


def test_cider_is_ten_for_the_reference_itself_and_zero_for_other_words() -> None:
    references = [["a", "red", "car", "here"], ["two", "big", "dogs", "there"]]
    scores = cider_scores([references[0], ["nothing"]], [[one] for one in references])
    assert scores == pytest.approx([10.0, 0.0])


def test_with_a_single_caption_every_weight_of_cider_is_zero() -> None:
    assert cider_scores([["red", "car"]], [[["red", "car"]]]) == [0.0]


@given(corpora, st.randoms(use_true_random=False))
def test_the_order_of_captions_changes_no_bit_of_cider(items: list[tuple], shuffle: random.Random) -> None:  # type: ignore[type-arg]
    mixed = shuffle.sample(items, len(items))
    results = []
    for captions in (items, mixed):
        metric = Cider()
        for prediction, references in captions:
            metric.update(caption(" ".join(prediction), [" ".join(one) for one in references]))
        results.append(float(metric.compute()["cider"]))
    assert results[0] == results[1] and 0 <= results[0] <= 10 + 1e-9


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@given(corpora, st.integers(1, 3))
@settings(max_examples=30)
def test_merged_objects_give_the_captions_figures_of_one(items: list[tuple], parts: int) -> None:  # type: ignore[type-arg]
    for kind in (Cider, MeteorLite):
        whole, merged = kind(), kind()
        for part in range(parts):
            other = kind()
            for prediction, references in items[part::parts]:
                for metric in (whole, other):
                    metric.update(caption(" ".join(prediction), [" ".join(one) for one in references]))
            merged.merge_state(other)
        assert {key: float(value) for key, value in merged.compute().items()} == {
            key: float(value) for key, value in whole.compute().items()
        }


@pytest.mark.parametrize("kind", [Cider, MeteorLite])
def test_no_caption_is_no_figure_and_a_caption_needs_a_reference(kind: type[Cider] | type[MeteorLite]) -> None:
    metric = kind()
    with pytest.raises(SailError, match="no reference"):
        metric.update(caption("a dog", []))
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        (value,) = metric.compute().values()
    assert math.isnan(float(value))
