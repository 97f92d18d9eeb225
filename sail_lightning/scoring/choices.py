"""Multiple choice, and questions answered by yes or no, answer by answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sail_lightning.errors import SailError
from sail_lightning.metrics import yes_no
from sail_lightning.metrics.sums import ratio
from sail_lightning.metrics.text import chooses_right, parse_choice
from sail_lightning.metrics.yes_no import judged, parse_yes_no, parse_yes_no_pope
from sail_lightning.scoring.parts import Options, SumsPart
from sail_lightning.scoring.record import Answer


def multiple_choice(answers: Sequence[Answer], options: Options) -> SumsPart:
    """`mcq_accuracy` by the protocol's rule, and beside it `mcq_accuracy_substring` by the official one (E23).

    Each answer's score holds `correct`, `correct_substring` and `choice`, the letter read from the answer or null.
    """
    rows, samples = [], []
    for answer in answers:
        right = _truth(answer)
        # The official rule knows no options and no letters: the truth stands somewhere in the answer, or not.
        found = right in answer.text
        parsed = found if options.official else _judge(answer, right)
        choice = parse_choice(answer.text, answer.choices)
        samples.append({"correct": parsed, "correct_substring": found, "choice": choice})
        rows.append({"right": parsed, "substring": found, "unparsed": choice is None, "count": 1})
    fields = ("right", "substring", "unparsed", "count")
    return SumsPart.of(fields, rows, _accuracy, samples, lambda total: {"unparsed": total["unparsed"]})


def yes_or_no(answers: Sequence[Answer], options: Options) -> SumsPart:
    """`accuracy precision recall f1 yes_ratio`; each answer's score holds `correct` and `yes` (null: neither)."""
    rows, samples = [], []
    for answer in answers:
        said = parse_yes_no_pope(answer.text) if options.official else parse_yes_no(answer.text)
        try:
            row = judged(said, _truth(answer))
        except SailError as error:
            raise SailError(f"{answer.name}: {error}") from None
        rows.append(row)
        samples.append({"correct": row["right"] > 0, "yes": said})
    return SumsPart.of(yes_no.FIELDS, rows, yes_no.figures, samples, lambda total: {"unparsed": total["unparsed"]})


def _truth(answer: Answer) -> str:
    return answer.answer or (answer.reference[0] if answer.reference else "")


def _judge(answer: Answer, right: str) -> bool:
    try:
        return chooses_right(answer.text, right, answer.choices)
    except SailError as error:
        raise SailError(f"{answer.name}: {error}") from None


def _accuracy(total: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "mcq_accuracy": ratio(total["right"], total["count"]),
        "mcq_accuracy_substring": ratio(total["substring"], total["count"]),
    }
