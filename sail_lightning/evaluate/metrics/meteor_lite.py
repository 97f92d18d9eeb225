"""`meteor_lite`, a METEOR without Java and WordNet. Its values differ from those of METEOR 1.5.

Words of a prediction are matched with words of the reference, first those that are the same, then those of the same
stem (Porter). Matching takes the longest run of consecutive words first (ties: the earlier in the prediction, then in
the reference), so that there are few chunks. With m matches in c chunks, precision P = m / words of the prediction and
recall R = m / words of the reference:

    F = P R / (0.9 P + 0.1 R),    penalty = 0.5 (c / m)^3,    score = F (1 - penalty)

This is the formula of METEOR 1.0 to 1.3 with the parameters of Banerjee and Lavie (2005): recall weighs nine times as
much as precision. The penalty is 0 where all words of both sides match in one chunk, so that an exact answer scores 1.
Of several references the best one counts. The corpus value is the mean over captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sail_lightning.evaluate.metrics.stemming import stem
from sail_lightning.settings.renames import renamed

ALPHA, BETA, GAMMA = 0.9, 3.0, 0.5
"""The weight of recall, and the exponent and the weight of the penalty."""


def meteor_lite(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns the score of a list of words with its best reference, in [0, 1]; two empty lists score 1."""
    return max(_score(prediction, reference) for reference in references)


def _score(prediction: Sequence[str], reference: Sequence[str]) -> float:
    if not prediction or not reference:
        return float(not prediction and not reference)
    matched = aligned(prediction, reference)
    if not matched:
        return 0.0
    matches = len(matched)
    chunks = sum(matched.get(place - 1) != other - 1 for place, other in matched.items())
    precision, recall = matches / len(prediction), matches / len(reference)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    exact = chunks == 1 and precision == recall == 1
    return mean * (1 - (0.0 if exact else GAMMA * (chunks / matches) ** BETA))


def aligned(prediction: Sequence[str], reference: Sequence[str]) -> dict[int, int]:
    """Matches words: returns the index in the reference of each matched word, by its index in the prediction."""
    matched: dict[int, int] = {}
    same: Callable[[str], str] = str
    for form in (same, stem):
        left, right = [form(word) for word in prediction], [form(word) for word in reference]
        while run := _longest_run(left, right, matched):
            start, other, length = run
            matched |= {start + step: other + step for step in range(length)}
    return matched


def _longest_run(left: list[str], right: list[str], matched: dict[int, int]) -> tuple[int, int, int] | None:
    """Returns the longest run of equal words that are not matched yet: its start on both sides and its length; None
    where there is none."""
    taken = set(matched.values())
    best: tuple[int, int, int] | None = None
    before: dict[int, int] = {}
    for place, word in enumerate(left):
        here: dict[int, int] = {}
        if place not in matched:
            for other, candidate in enumerate(right):
                if candidate == word and other not in taken:
                    length = before.get(other - 1, 0) + 1
                    here[other] = length
                    if best is None or length > best[2]:
                        best = (place - length + 1, other - length + 1, length)
        before = here
    return best


__getattr__ = renamed(__name__, {"MeteorLite": "sail_lightning.evaluate.metrics.captions:MeteorLite"})
