"""Metrics of captions that are means of a caption's own score, and the texts that all caption metrics compare."""

from __future__ import annotations

import re
from typing import Any

from sail_lightning.errors import SailError
from sail_lightning.evaluate.metric import GatheredMetric, MeanScore
from sail_lightning.evaluate.metrics.meteor_lite import meteor_lite
from sail_lightning.evaluate.metrics.text import normalise, strip_markup, token_f1
from sail_lightning.evaluate.metrics.words import words
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import ProtocolName, Rules
from sail_lightning.registry import register


def swapped(record: EvalRecord, rules: Rules) -> bool:
    """Whether the truth is judged by the prediction: the official rule of PerBench's captions (E21)."""
    return rules.official and record.kind == "perbench_caption"


def sides(record: EvalRecord, rules: Rules) -> tuple[str, list[str]]:
    """Returns the text that is judged, without markup, and the references by which it is judged.

    The official protocol removes every dot and colon from region captions, also inside words.

    Raises:
        SailError: The record has no truth in words.
    """
    if not record.reference and record.true_answer is None:
        raise SailError("a caption has no reference; give one or more")
    text = strip_markup(record.prediction)
    if rules.official and record.kind == "region_caption":
        text = re.sub(r"[.:]", "", text)
    references = list(record.reference) or [record.true_answer or ""]
    return (references[0], [text]) if swapped(record, rules) else (text, references)


class CaptionScore(MeanScore):
    """Base of metrics that are the mean of a caption's own score.

    Args:
        protocol: Protocol of the evaluation, as in `Rules`.
    """

    takes = "words"

    def __init__(self, protocol: ProtocolName = "standard") -> None:
        self.rules = Rules(protocol)
        super().__init__()


@register
class ExactMatch(CaptionScore):
    """Exact match of captions, `exact_match`: the share, in [0, 1], of answers that equal a reference after
    `normalise`."""

    key = "exact_match"

    def answer_score(self, record: EvalRecord) -> float:
        """Returns 1 if the answer equals a reference after `normalise`, else 0."""
        text, references = sides(record, self.rules)
        return float(normalise(text) in map(normalise, references))


@register
class TokenF1(CaptionScore):
    """Token F1 of captions, `token_f1`: the mean, in [0, 1], of `text.token_f1` with the best reference."""

    key = "token_f1"

    def answer_score(self, record: EvalRecord) -> float:
        """Returns the token F1 of the answer with its best reference, in [0, 1]."""
        text, references = sides(record, self.rules)
        return max(token_f1(text, reference) for reference in references)


@register
class MeteorLite(CaptionScore):
    """METEOR without Java, `meteor_lite`: the mean, in [0, 1], of the score of `metrics.meteor_lite`."""

    key = "meteor_lite"

    def answer_score(self, record: EvalRecord) -> float:
        """Returns the score of the answer with its best reference, in [0, 1]."""
        text, references = sides(record, self.rules)
        # The official code of PerBench gives NLTK the words between spaces, with their punctuation.
        cut = _between_spaces if swapped(record, self.rules) else words
        return meteor_lite(cut(text), [cut(reference) for reference in references])


class CorpusScore(GatheredMetric):
    """Base of metrics that need all captions at once.

    Args:
        protocol: Protocol of the evaluation, as in `Rules`.
    """

    takes = "words"

    def __init__(self, protocol: ProtocolName = "standard") -> None:
        self.rules = Rules(protocol)
        super().__init__()

    def entry(self, record: EvalRecord) -> Any:
        """Returns the words of a caption and of each of its references.

        Raises:
            SailError: The record has no reference.
        """
        text, references = sides(record, self.rules)
        return [words(text), [words(reference) for reference in references]]


def _between_spaces(text: str) -> list[str]:
    return strip_markup(text).lower().split()
