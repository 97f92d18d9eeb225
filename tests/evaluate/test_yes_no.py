"""Questions answered by yes or no, as POPE counts them; phrases compared by embeddings."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_lightning.errors import SailError
from sail_lightning.evaluate import EvalRecord, YesNo
from sail_lightning.evaluate.metrics.similarity import EmbeddedPhrases, bert_phrases
from sail_lightning.evaluate.metrics.text import parse_yes_no, parse_yes_no_pope


def judged(pairs: list[tuple[str, str]]) -> dict[str, float]:
    metric = YesNo()
    for prediction, reference in pairs:
        metric.update(EvalRecord(prediction=prediction, true_answer=reference))
    return {key: float(value) for key, value in metric.compute().items()}


def test_the_five_figures_follow_their_definitions() -> None:
    pairs = [("Yes.", "yes"), ("yes", "no"), ("No", "no"), ("no, none", "yes"), ("Yes, it is", "yes")]
    expected = {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.6}
    assert judged(pairs) == pytest.approx(expected)


def test_an_answer_that_says_neither_is_wrong_and_no_yes() -> None:
    assert judged([("maybe", "no"), ("maybe", "yes"), ("yes", "yes")]) == pytest.approx(
        {"accuracy": 1 / 3, "precision": 1.0, "recall": 0.5, "f1": 2 / 3, "yes_ratio": 1 / 3}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("Yes", True), ("no.", False), ("I think yes", True), ("There is nothing", None), ("<|endoftext|>", None)],
)
def test_the_first_yes_or_no_decides(text: str, said: bool | None) -> None:
    assert parse_yes_no(text) is said


def test_popes_own_rule_reads_anything_but_a_no_as_yes() -> None:
    answers = ("There is not a dog", "maybe", "Yes. No.", "nothing")
    assert [parse_yes_no_pope(text) for text in answers] == [False, True, True, True]


def test_a_reference_that_says_neither_is_refused() -> None:
    with pytest.raises(SailError, match="'perhaps' is neither yes nor no"):
        judged([("yes", "perhaps")])


def test_without_any_yes_precision_is_nan() -> None:
    result = judged([("no", "no")])
    assert math.isnan(result["precision"]) and result["accuracy"] == 1.0


@given(st.lists(st.tuples(st.sampled_from(["yes", "no", "?"]), st.sampled_from(["yes", "no"])), min_size=1))
def test_the_figures_are_those_of_a_confusion_matrix(pairs: list[tuple[str, str]]) -> None:
    yes = sum(said == "yes" for said, _ in pairs)
    both = sum(said == true == "yes" for said, true in pairs)
    true = sum(true == "yes" for _, true in pairs)
    result = judged(pairs)
    assert result["accuracy"] == sum(said == true for said, true in pairs) / len(pairs)
    if both:
        precision, recall = both / yes, both / true
        assert result["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_phrases_are_compared_by_cosine_and_each_is_embedded_once() -> None:
    vectors = {"sky": [1.0, 0.0], "cloud": [3.0, 4.0], "void": [0.0, 0.0], "ground": [-1.0, 0.0]}
    asked: list[str] = []

    def embed(phrase: str) -> np.ndarray:
        asked.append(phrase)
        return np.array(vectors[phrase])

    similarity = EmbeddedPhrases(embed)
    assert similarity("sky", "cloud") == pytest.approx(0.6)
    assert similarity("cloud", "sky") == pytest.approx(0.6)
    assert similarity("cloud", "cloud") == pytest.approx(1.0)
    assert similarity("sky", "void") == similarity("sky", "ground") == 0.0
    assert sorted(asked) == ["cloud", "ground", "sky", "void"]


def test_bert_phrases_are_the_mean_of_a_models_last_states(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ncar\n")
    torch.manual_seed(0)
    small = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(small).save_pretrained(tmp_path)
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    similarity = bert_phrases(tmp_path)
    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        inputs = (tokenizer(phrase, return_tensors="pt") for phrase in ("red", "red car"))
        left, right = (model(**one).last_hidden_state[0].mean(0) for one in inputs)
    expected = float(torch.nn.functional.cosine_similarity(left, right, dim=0).clamp(0, 1))
    assert similarity("red", "red car") == pytest.approx(expected, abs=1e-6)
    assert similarity("red", "red") == pytest.approx(1.0)


def test_a_folder_without_a_text_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SailError, match="no text model in"):
        bert_phrases(tmp_path)
