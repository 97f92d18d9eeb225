"""CIDEr of captions, as the COCO caption evaluation computes it (Vedantam et al., CVPR 2015; there "CIDEr-D").

For each length n = 1 .. 4, a caption is a vector of its n-grams, each weighted by how often it occurs times
log(samples / samples whose references contain it). A prediction is compared with each reference by

    exp(-(difference in length)^2 / 72) * sum min(p, r) * r / (|p| |r|)

and the mean over references and lengths, times 10, is the sample's score. The corpus value is the mean over samples.
Rare words weigh more the larger the set of references is: values of different sets cannot be compared, and with a
single sample every weight is log 1 = 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from typing import Any

import numpy as np

from sail_lightning.evaluate.fixed_point import mean, to_fixed_point
from sail_lightning.evaluate.metric import MetricResult, SumResult
from sail_lightning.evaluate.metrics.captions import CorpusScore
from sail_lightning.registry import register

ORDERS = 4
SIGMA = 6.0
"""Standard deviation, in words, of the Gaussian penalty on a difference in length."""

Gram = tuple[str, ...]


def cider_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Returns the CIDEr score of each sample, in [0, 10].

    Args:
        predictions: A list of words per sample.
        references: One or more lists of words per sample; the weights of n-grams are counted in these.
    """
    cooked = [[_grams(reference) for reference in sample] for sample in references]
    held = Counter(gram for sample in cooked for gram in set().union(*sample))
    total = log(len(cooked)) if cooked else 0.0
    scores = []
    for prediction, sample in zip(predictions, cooked, strict=True):
        grams = _Vector(_grams(prediction), held, total)
        similar = [_similarity(grams, _Vector(reference, held, total)) for reference in sample]
        scores.append(10 * sum(similar) / len(similar))
    return scores


def _grams(tokens: Sequence[str]) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(tokens) - n + 1))


class _Vector:
    """A caption's weighted n-grams, their norm per length, and the number of its bigrams, COCO's measure of length."""

    def __init__(self, grams: Counter[Gram], held: Counter[Gram], total: float) -> None:
        self.weights: list[dict[Gram, float]] = [{} for _ in range(ORDERS)]
        for gram, count in grams.items():
            self.weights[len(gram) - 1][gram] = count * (total - log(max(1, held[gram])))
        self.norms = [sqrt(sum(weight**2 for weight in part.values())) for part in self.weights]
        self.length = sum(count for gram, count in grams.items() if len(gram) == 2)


def _similarity(left: _Vector, right: _Vector) -> float:
    closeness = exp(-((left.length - right.length) ** 2) / (2 * SIGMA**2))
    found = 0.0
    for order in range(ORDERS):
        other = right.weights[order]
        shared = sum(min(w, other[gram]) * other[gram] for gram, w in left.weights[order].items() if gram in other)
        norms = left.norms[order] * right.norms[order]
        found += shared / norms if norms else 0.0
    return closeness * found / ORDERS


@register
class Cider(CorpusScore):
    """CIDEr of captions, `cider`: the mean over captions in [0, 10], which needs all captions at once.

    The weights of words are counted in all references, and do not change when captions are drawn again.
    """

    def evaluate_entries(self, entries: Sequence[Any]) -> MetricResult:
        """Returns the mean CIDEr and each caption's score."""
        scores = cider_scores([one[0] for one in entries], [one[1] for one in entries])
        rows = np.array([[to_fixed_point(score), 1] for score in scores], np.int64).reshape(-1, 2)
        return SumResult(("units", "count"), rows, _mean, [{"cider": score} for score in scores])


def _mean(sums: Mapping[str, Any]) -> dict[str, Any]:
    return {"cider": mean(sums["units"], sums["count"])}
