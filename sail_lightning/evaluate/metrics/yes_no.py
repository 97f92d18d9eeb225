"""Metrics of yes-or-no questions (POPE, Li et al., EMNLP 2023), such as: is there a ... in the image?

    accuracy  = right answers / questions
    precision = yes where yes is right / yes;   recall = yes where yes is right / questions where yes is right
    f1        = harmonic mean of both;          yes_ratio = yes / questions

An answer that says neither is wrong: it does not count as a yes, nor as right where the truth is no.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_lightning.errors import SailError
from sail_lightning.evaluate.fixed_point import ratio
from sail_lightning.evaluate.metric import SumMetric
from sail_lightning.evaluate.metrics.text import parse_yes_no, parse_yes_no_pope
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import ProtocolName, Rules
from sail_lightning.registry import register

FIELDS = ("right", "yes", "true_yes", "yes_right", "count", "unparsed")
"""Names of the sums: right answers, answers of yes, questions whose truth is yes, answers of yes to these, questions,
and answers that say neither."""


@register
class YesNo(SumMetric):
    """Accuracy, precision, recall, F1 and share of yes of yes-or-no questions, as the module's docstring defines them.

    Args:
        protocol: Protocol of the evaluation, as in `Rules`; `official` reads answers by POPE's own rule.
    """

    fields = FIELDS
    takes = "words"

    def __init__(self, protocol: ProtocolName = "standard") -> None:
        self.rules = Rules(protocol)
        super().__init__()

    def said(self, record: EvalRecord) -> bool | None:
        """Whether the answer says yes; None where it says neither yes nor no."""
        return (parse_yes_no_pope if self.rules.official else parse_yes_no)(record.prediction)

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what one answer adds to the sums; the truth is read like an answer.

        Raises:
            SailError: The truth says neither yes nor no.
        """
        said, true = self.said(record), parse_yes_no(record.truth)
        if true is None:
            raise SailError(f"the reference answer {record.truth!r} is neither yes nor no; begin it with one of them")
        return {
            "right": int(said == true),
            "yes": int(said is True),
            "true_yes": int(true),
            "yes_right": int(said is True and true),
            "count": 1,
            "unparsed": int(said is None),
        }

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns `accuracy precision recall f1 yes_ratio` in [0, 1], NaN where there was nothing to judge."""
        return {
            "accuracy": ratio(sums["right"], sums["count"]),
            "precision": ratio(sums["yes_right"], sums["yes"]),
            "recall": ratio(sums["yes_right"], sums["true_yes"]),
            "f1": ratio(2 * sums["yes_right"], sums["yes"] + sums["true_yes"]),
            "yes_ratio": ratio(sums["yes"], sums["count"]),
        }

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        """Returns `correct`, and `yes`, which is None where the answer says neither."""
        return {"correct": row["right"] > 0, "yes": self.said(record)}

    def counts(self, totals: Mapping[str, int]) -> dict[str, int]:
        """Returns `unparsed`, the number of answers that say neither yes nor no."""
        return {"unparsed": totals["unparsed"]}
