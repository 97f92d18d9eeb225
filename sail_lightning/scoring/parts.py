"""What a benchmark's figures are made of: a row of numbers per answer, kept so that answers can be drawn again.

A bootstrap draws answers with repetition a thousand times. With a row per answer that is one product of matrices: how
often each answer was drawn, times the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sail_lightning.metrics.grounded import Similarity
from sail_lightning.metrics.segmentation import Combine, NoTargetFrom
from sail_lightning.metrics.text import token_f1

ProtocolName = Literal["standard", "official"]
Floats = NDArray[np.float64]
Figures = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Figures of sums by name: of whole numbers floats, of arrays arrays."""


@dataclass(frozen=True)
class Options:
    """How answers are judged; the arguments of `score` of the same names."""

    protocol: ProtocolName = "standard"
    no_target_from: NoTargetFrom = "mask"
    combine: Combine = "union"
    similarity: Similarity = token_f1
    meteor: bool = True

    @property
    def official(self) -> bool:
        return self.protocol == "official"


class Part(Protocol):
    """Some figures of a benchmark."""

    @property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Each answer's own score, by name."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """What was met, by name."""
        ...

    def metrics(self) -> dict[str, float]:
        """The figures of all answers; NaN where there was nothing to judge."""
        ...

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        """The figures (rounds,) of other draws: `drawn` (rounds, answers) says how often each answer is in."""
        ...


@dataclass(frozen=True)
class SumsPart:
    """Figures that are quotients of sums over answers.

    `rows` (answers, fields) int64, one column for each of `fields`; `figures` makes figures of the columns' sums.
    """

    fields: tuple[str, ...]
    rows: NDArray[np.int64]
    figures: Figures
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        fields: Sequence[str],
        rows: Iterable[Mapping[str, int]],
        figures: Figures,
        samples: Sequence[Mapping[str, Any]],
        counts: Callable[[dict[str, int]], Mapping[str, int]] = lambda total: {},
    ) -> SumsPart:
        """From a mapping per answer, in which fields may be left out; `counts` are made of the sums."""
        table = np.array([[row.get(name, 0) for name in fields] for row in rows], np.int64).reshape(-1, len(fields))
        part = cls(tuple(fields), table, figures, samples)
        return cls(part.fields, table, figures, samples, counts(part.totals()))

    def totals(self) -> dict[str, int]:
        """The sums, exact."""
        return dict(zip(self.fields, self.rows.sum(0).tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.figures(self.totals()).items()}

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        sums = drawn @ self.rows.astype(np.float64)
        return self.figures(dict(zip(self.fields, sums.T, strict=True)))
