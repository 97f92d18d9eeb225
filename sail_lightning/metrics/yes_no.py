"""Questions that are answered by yes or no (POPE, Li et al., EMNLP 2023): is there a ... in the picture?

    accuracy  = right answers / questions
    precision = yes where yes is right / yes;   recall = yes where yes is right / questions where yes is right
    f1        = harmonic mean of both;          yes_ratio = yes / questions

An answer that says neither is wrong: it is not a yes, and where no was right it is no hit either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sail_lightning.errors import SailError
from sail_lightning.metrics.sums import Sums, ratio, scalar
from sail_lightning.metrics.text import normalise

FIELDS = ("right", "yes", "true_yes", "yes_right", "count", "unparsed")
"""Right answers, answers of yes, questions whose answer is yes, both, questions, answers that say neither."""


def parse_yes_no(text: str) -> bool | None:
    """Whether an answer says yes: by the first word that is `yes` or `no`, or else None."""
    return next((word == "yes" for word in normalise(text).split() if word in ("yes", "no")), None)


def parse_yes_no_pope(text: str) -> bool:
    """POPE's own rule: of the first sentence, no where a word is `No`, `not` or `no`, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def judged(said: bool | None, reference: str) -> dict[str, int]:
    """What one answer adds to each of `FIELDS`.

    Raises:
        SailError: the reference says neither yes nor no.
    """
    true = parse_yes_no(reference)
    if true is None:
        raise SailError(f"the reference answer {reference!r} is neither yes nor no; begin it with one of them")
    return {
        "right": int(said == true),
        "yes": int(said is True),
        "true_yes": int(true),
        "yes_right": int(said is True and true),
        "count": 1,
        "unparsed": int(said is None),
    }


def figures(total: Mapping[str, Any]) -> dict[str, Any]:
    """`accuracy precision recall f1 yes_ratio` of sums, NaN where there was nothing to judge; numbers or arrays."""
    return {
        "accuracy": ratio(total["right"], total["count"]),
        "precision": ratio(total["yes_right"], total["yes"]),
        "recall": ratio(total["yes_right"], total["true_yes"]),
        "f1": ratio(2 * total["yes_right"], total["yes"] + total["true_yes"]),
        "yes_ratio": ratio(total["yes"], total["count"]),
    }


class YesNo(Sums):
    """Accuracy, precision, recall, F1 and share of yes; definitions in the module's docstring."""

    fields = FIELDS

    def update(self, prediction: str, reference: str) -> None:
        """Adds one answer; the reference is read like an answer.

        Raises:
            SailError: the reference says neither yes nor no.
        """
        self.add(**judged(parse_yes_no(prediction), reference))

    def compute(self) -> dict[str, Tensor]:
        """`accuracy precision recall f1 yes_ratio` in [0, 1], NaN where there was nothing to judge."""
        return {name: scalar(value) for name, value in figures(self.totals()).items()}
