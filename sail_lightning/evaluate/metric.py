"""The seam of evaluation: one class per metric, from which every number about answers comes.

A metric takes records (`EvalRecord`: one prediction, one truth, a task). The same definition gives the value that is
logged in validation and test (`update` and `compute`, exact over batches and ranks), each answer's own score, and the
report with its bootstrap interval (`evaluate`). Most metrics are quotients of sums over answers: derive from
`SumMetric`, or from `MeanScore` where the metric is the mean of a score in [0, 1]. A metric that needs all answers at
once derives from `GatheredMetric`.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from sail_lightning.errors import SailError
from sail_lightning.evaluate.fixed_point import FIXED_POINT_ONE, mean, scalar, to_fixed_point
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.registry import swap_point

Floats = NDArray[np.float64]
Takes = Literal["masks", "words", "everything"]


class MetricResult:
    """What a metric makes of a set of records.

    `values` by name, NaN where there was nothing to judge; `samples` the score of each record, in their order, by name;
    `counts` whole numbers that a report prints; `note` why there are no intervals, if there are none.
    """

    values: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = {}
    note: str = ""

    @abstractmethod
    def resampled(self, drawn: Floats) -> Mapping[str, Floats]:
        """The values (rounds,) of other draws: `drawn` (rounds, records) says how often each record is in."""


@swap_point("model.metrics.NAME")
class Metric(torchmetrics.Metric):
    """Base of all metrics of this package.

    `takes` says what the metric judges, unless `judges` says it otherwise: answers with `masks`, answers in `words`, or
    `everything`. Nothing is cached: a rank that saw no new record would otherwise skip the collective that the others
    wait in.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    takes: ClassVar[Takes] = "everything"

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)

    def judges(self, record: EvalRecord) -> bool:
        """Whether the metric has something to say about a record; others are passed over."""
        return {"masks": record.has_masks, "words": record.has_words, "everything": True}[self.takes]

    @abstractmethod
    def update(self, record: EvalRecord) -> None:
        """Adds one record."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """The values of all records of all ranks, by name; NaN where there was nothing to judge."""

    @abstractmethod
    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        """The values of a set of records, each record's score, and the values of other draws of them."""


@dataclass(frozen=True)
class SumResult(MetricResult):
    """Values that are functions of sums.

    `rows` (records, fields) int64 are what each record adds to `fields`; `values_of` makes values of the sums, whole
    numbers or arrays.
    """

    fields: tuple[str, ...]
    rows: NDArray[np.int64]
    values_of: Callable[[Mapping[str, Any]], dict[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:  # type: ignore[override]
        """The values of all records."""
        return {name: float(value) for name, value in self.values_of(self.totals()).items()}

    def totals(self) -> dict[str, int]:
        """The sums by name, exact."""
        return dict(zip(self.fields, self.rows.sum(0).tolist(), strict=True))

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        sums = drawn @ self.rows.astype(np.float64)
        return self.values_of(dict(zip(self.fields, sums.T, strict=True)))


class SumMetric(Metric):
    """A metric whose values are functions of sums over answers.

    Its state is one int64 vector, an entry for each of `fields`, that is added up over batches and ranks. `score` says
    what one answer adds, `values` what the sums are worth.
    """

    fields: ClassVar[tuple[str, ...]]
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self.fields), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, record: EvalRecord) -> Mapping[str, int]:
        """What one record adds to each of `fields`, whole numbers; those left out get nothing."""

    @abstractmethod
    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """The values of sums by name: floats of whole numbers, arrays of arrays (`ratio` and `mean` do both)."""

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> Mapping[str, Any]:
        """A record's own score, as `per_sample.jsonl` holds it; its values alone unless a metric says otherwise."""
        values = self.values({name: int(row.get(name, 0)) for name in self.fields})
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    def counts(self, totals: Mapping[str, int]) -> Mapping[str, int]:
        """Whole numbers that a report prints beside the values."""
        return {}

    def update(self, record: EvalRecord) -> None:
        """Adds one record.

        Raises:
            SailError: the record cannot be judged; the message names it.
        """
        row = torch.tensor(self._vector(self._named(record)), dtype=torch.int64, device=self.sums.device)
        # Not in place: a state made in inference mode (Lightning's validation) may be added to outside it.
        self.sums = self.sums + row

    def totals(self) -> dict[str, int]:
        """The sums by name."""
        return dict(zip(self.fields, self.sums.tolist(), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """The values by name: float64, no dimensions, NaN where there was nothing to judge."""
        return {name: scalar(value) for name, value in self.values(self.totals()).items()}

    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        """As `Metric.evaluate`.

        Raises:
            SailError: a record cannot be judged; the message names it.
        """
        rows = [self._named(record) for record in records]
        table = np.array([self._vector(row) for row in rows], np.int64).reshape(-1, len(self.fields))
        samples = [self.sample(*pair) for pair in zip(records, rows, strict=True)]
        totals = dict(zip(self.fields, table.sum(0).tolist(), strict=True))
        return SumResult(self.fields, table, self.values, samples, self.counts(totals))

    def _named(self, record: EvalRecord) -> Mapping[str, int]:
        with record.named():
            return self.score(record)

    def _vector(self, row: Mapping[str, int]) -> list[int]:
        if unknown := row.keys() - set(self.fields):
            raise SailError(f"{type(self).__name__} has no field {sorted(unknown)[0]}; it has {', '.join(self.fields)}")
        return [int(row.get(name, 0)) for name in self.fields]


class MeanScore(SumMetric):
    """The mean of a score in [0, 1] that each answer has. Its one value is called `key`, by default the class's name.

    `answer_score` is all that a subclass must define.
    """

    fields = ("units", "count")
    key: ClassVar[str] = ""

    @abstractmethod
    def answer_score(self, record: EvalRecord) -> float | None:
        """The score of one answer, 0 to 1; None where the metric has nothing to say about it."""

    def score(self, record: EvalRecord) -> dict[str, int]:
        """What one record adds to `units` and `count`.

        Raises:
            SailError: the score is not in [0, 1].
        """
        value = self.answer_score(record)
        if value is None:
            return {}
        if not 0 <= value <= 1:
            raise SailError(f"{type(self).__name__} scores it {float(value)}, but a score must be from 0 to 1")
        return {"units": to_fixed_point(value), "count": 1}

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        return {self.key or type(self).__name__: mean(sums["units"], sums["count"])}

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        value = row["units"] / FIXED_POINT_ONE if row.get("count") else None
        return {self.key or type(self).__name__: value}


class GatheredMetric(Metric):
    """A metric that is no sum over answers: what it needs of each is gathered from all ranks, as lines of JSON.

    Lines are read sorted, so batches and ranks change no result. Such metrics are not among those that are logged by
    default, because they take all answers into memory; as a metric of your own they are.
    """

    lines: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", [], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        # A rank without records takes part in the gathering all the same, with no bytes of the right type.
        self.lines = [torch.zeros(0, dtype=torch.uint8, device=self.device)]

    def reset(self) -> None:
        """Forgets all records."""
        super().reset()
        self._begin()

    @abstractmethod
    def entry(self, record: EvalRecord) -> Any:
        """What is kept of a record, as anything that JSON holds."""

    @abstractmethod
    def evaluate_entries(self, entries: Sequence[Any]) -> MetricResult:
        """The result of what was kept of some records."""

    def order(self, entry: Any) -> Any:
        """By what the entries of all ranks are sorted; nothing of a result may depend on more."""
        return 0

    def update(self, record: EvalRecord) -> None:
        """Adds one record.

        Raises:
            SailError: the record cannot be judged; the message names it.
        """
        code = json.dumps(self._named(record), separators=(",", ":")).encode() + b"\n"
        assert isinstance(self.lines, list)
        self.lines.append(torch.tensor(list(code), dtype=torch.uint8, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """The values by name: float64, no dimensions, NaN where there was nothing to judge."""
        code = bytes(dim_zero_cat(self.lines).cpu().numpy())
        entries = sorted((json.loads(line) for line in sorted(code.splitlines())), key=self.order)
        return {name: scalar(value) for name, value in self.evaluate_entries(entries).values.items()}

    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        """As `Metric.evaluate`."""
        return self.evaluate_entries([self._named(record) for record in records])

    def _named(self, record: EvalRecord) -> Any:
        with record.named():
            return self.entry(record)
