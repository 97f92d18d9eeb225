"""Captions: METEOR, CIDEr and token F1, answer by answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sail_lightning.metrics.cider import cider_scores
from sail_lightning.metrics.meteor import Counts, meteor_counts, meteor_program, meteor_score
from sail_lightning.metrics.meteor_lite import meteor_lite
from sail_lightning.metrics.sums import mean, to_units
from sail_lightning.metrics.text import strip_markup, token_f1
from sail_lightning.metrics.words import words
from sail_lightning.scoring.benchmarks import Kind
from sail_lightning.scoring.parts import Floats, Options, Part, SumsPart
from sail_lightning.scoring.record import Answer

Sentences = list[list[str]]


def captions(answers: Sequence[Answer], options: Options, kind: Kind) -> list[Part]:
    """`meteor` (where it is wanted, and Java and pycocoevalcap are), `meteor_lite`, `cider`, `token_f1`.

    Each answer's score holds the same four. The weights of CIDEr are counted in all references, and stay as they are
    when answers are drawn again.
    """
    told = [_told(answer.text, options, kind) for answer in answers]
    true = [list(answer.reference) or [answer.answer or ""] for answer in answers]
    swapped = options.official and kind == "perbench_caption"
    if swapped:  # E21: the truth is judged by the prediction
        told, true = [sample[0] for sample in true], [[text] for text in told]
    predictions = [words(text) for text in told]
    references = [[words(text) for text in sample] for sample in true]
    cider = cider_scores(predictions, references)
    if swapped:  # NLTK was given the words between spaces, marks and all
        light = [meteor_lite(_cut(text), [_cut(sample[0])]) for text, sample in zip(told, true, strict=True)]
    else:
        light = [meteor_lite(*pair) for pair in zip(predictions, references, strict=True)]
    agreed = [max(token_f1(text, one) for one in sample) for text, sample in zip(told, true, strict=True)]
    scores = {"meteor_lite": light, "cider": cider, "token_f1": agreed}
    samples = [dict(zip(scores, line, strict=True)) for line in zip(*scores.values(), strict=True)]
    rows = [{"count": 1} | {name: to_units(score) for name, score in sample.items()} for sample in samples]
    parts: list[Part] = [SumsPart.of([*scores, "count"], rows, _means, samples)]
    return [MeteorPart.of(predictions, references), *parts] if options.meteor and meteor_program() else parts


def _told(text: str, options: Options, kind: Kind) -> str:
    """An answer's words; the official region captions lose every dot and colon, also inside words."""
    plain = strip_markup(text)
    return re.sub(r"[.:]", "", plain) if options.official and kind == "region_caption" else plain


def _cut(text: str) -> list[str]:
    return strip_markup(text).lower().split()


def _means(total: Mapping[str, Any]) -> dict[str, Any]:
    return {name: mean(total[name], total["count"]) for name in total if name != "count"}


@dataclass(frozen=True)
class MeteorPart:
    """`meteor`: the formula of METEOR 1.5 on the sums of what its program counted per answer, `table` (answers, 23)."""

    table: Counts
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]

    @classmethod
    def of(cls, predictions: Sentences, references: Sequence[Sentences]) -> MeteorPart:
        table = meteor_counts(predictions, references)
        return cls(table, [{"meteor": float(score)} for score in meteor_score(table)], {})

    def metrics(self) -> dict[str, float]:
        return {"meteor": float(meteor_score(self.table.sum(0))) if len(self.table) else float("nan")}

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        return {"meteor": np.asarray(meteor_score(drawn @ self.table))}
