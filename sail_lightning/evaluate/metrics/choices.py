"""Accuracy of multiple choice: the share of questions to which the answer names the right option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sail_lightning.evaluate.fixed_point import ratio
from sail_lightning.evaluate.metric import SumMetric
from sail_lightning.evaluate.metrics.text import chooses_right, parse_choice
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import ProtocolName, Rules
from sail_lightning.registry import register


@register
class MultipleChoiceAccuracy(SumMetric):
    """Accuracy of multiple choice, in [0, 1]: `mcq_accuracy` by the protocol's rule, and `mcq_accuracy_substring` by
    the official rule (E23).

    Args:
        protocol: `standard` reads the option by `parse_choice`; `official` ignores options and letters, and asks only
            whether the answer contains the true text.
    """

    fields = ("right", "substring", "unparsed", "count")
    takes = "words"

    def __init__(self, protocol: ProtocolName = "standard") -> None:
        self.rules = Rules(protocol)
        super().__init__()

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what one question adds to the sums.

        Raises:
            SailError: The truth names no option, or a choice list is longer than the alphabet.
        """
        found = record.truth in record.prediction
        right = found if self.rules.official else chooses_right(record.prediction, record.truth, record.choices)
        unparsed = parse_choice(record.prediction, record.choices) is None
        return {"right": int(right), "substring": int(found), "unparsed": int(unparsed), "count": 1}

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns both accuracies in [0, 1], NaN without questions."""
        return {
            "mcq_accuracy": ratio(sums["right"], sums["count"]),
            "mcq_accuracy_substring": ratio(sums["substring"], sums["count"]),
        }

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        """Returns `correct`, `correct_substring` and `choice`, the letter read from the answer or None."""
        choice = parse_choice(record.prediction, record.choices)
        return {"correct": row["right"] > 0, "correct_substring": row["substring"] > 0, "choice": choice}

    def counts(self, totals: Mapping[str, int]) -> dict[str, int]:
        """Returns `unparsed`, the number of answers that name no option."""
        return {"unparsed": totals["unparsed"]}
