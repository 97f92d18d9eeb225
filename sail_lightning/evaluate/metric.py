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
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate.fixed_point import FIXED_POINT_ONE, mean, scalar, to_fixed_point
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.registry import swap_point
from sail_lightning.settings.ranges import Checked
from sail_lightning.settings.renames import renamed

Floats = NDArray[np.float64]
Takes = Literal["masks", "words", "everything"]


class MetricResult:
    """The result of a metric on a set of records.

    `values` are the metric's values by name, NaN where there was nothing to judge. `samples` holds the scores of each
    record by name, in the order of the records. `counts` are whole numbers that a report prints. `note` says why there
    are no intervals, if there are none.
    """

    values: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = {}
    note: str = ""

    @abstractmethod
    def resampled(self, drawn: Floats) -> Mapping[str, Floats]:
        """Returns the values, float64 (rounds,), of other draws of the records.

        Args:
            drawn: How often each record is in each draw, (rounds, records) float64.
        """


@swap_point("model.metrics.NAME")
class Metric(Checked, torchmetrics.Metric):
    """Base of all metrics of this package.

    The class attribute `takes` says which answers the metric judges: those with `masks`, those in `words`, or
    `everything`; a subclass may override `judges` instead. Nothing is cached: a rank that saw no new record would
    otherwise skip the collective operation in which the others wait.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    takes: ClassVar[Takes] = "everything"

    def __init__(self) -> None:
        super().__init__(compute_with_cache=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.takes not in get_args(Takes):
            raise SailUsageError(
                f"{cls.__name__}.takes must be one of {', '.join(get_args(Takes))}, not {cls.takes!r}; "
                "for another choice override judges"
            )

    def judges(self, record: EvalRecord) -> bool:
        """Whether the metric judges a record; other records are skipped."""
        return {"masks": record.has_masks, "words": record.has_words, "everything": True}[self.takes]

    @abstractmethod
    def update(self, record: EvalRecord) -> None:
        """Adds one record."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Returns the values over all records of all ranks, by name, NaN where there was nothing to judge."""

    @abstractmethod
    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        """Judges a set of records: returns their values, each record's score, and the values of other draws of them."""


@dataclass(frozen=True)
class SumResult(MetricResult):
    """Values that are functions of sums.

    `rows`, (records, fields) int64, are what each record adds to `fields`. `values_of` computes the values of the sums,
    which are whole numbers or arrays.
    """

    fields: tuple[str, ...]
    rows: NDArray[np.int64]
    values_of: Callable[[Mapping[str, Any]], dict[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:  # type: ignore[override]
        """The values over all records, by name."""
        return {name: float(value) for name, value in self.values_of(self.totals()).items()}

    def totals(self) -> dict[str, int]:
        """Returns the sums over all records by name, as exact whole numbers."""
        return dict(zip(self.fields, self.rows.sum(0).tolist(), strict=True))

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        sums = drawn @ self.rows.astype(np.float64)
        return self.values_of(dict(zip(self.fields, sums.T, strict=True)))


class SumMetric(Metric):
    """A metric whose values are functions of sums over answers.

    Its state is one int64 vector with an entry for each of `fields`, which is summed over batches and ranks. A subclass
    defines `score`, which returns what one answer adds, and `values`, which computes the values of the sums.
    """

    fields: ClassVar[tuple[str, ...]]
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(self.fields), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def score(self, record: EvalRecord) -> Mapping[str, int]:
        """Returns the whole number that one record adds to each of `fields`; fields left out get 0."""

    @abstractmethod
    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of sums, by name: floats of whole numbers, float64 arrays of arrays (`ratio` and `mean` do
        both)."""

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> Mapping[str, Any]:
        """Returns a record's own scores, as `per_sample.jsonl` holds them: by default the values of that record
        alone."""
        values = self.values({name: int(row.get(name, 0)) for name in self.fields})
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    def counts(self, totals: Mapping[str, int]) -> Mapping[str, int]:
        """Returns whole numbers that a report prints beside the values; by default none."""
        return {}

    def update(self, record: EvalRecord) -> None:
        """Adds one record.

        Raises:
            SailError: The record cannot be judged; the message names it.
        """
        row = torch.tensor(self._vector(self._named(record)), dtype=torch.int64, device=self.sums.device)
        # Not in place: a state made in inference mode (Lightning's validation) may be added to outside it.
        self.sums = self.sums + row

    def totals(self) -> dict[str, int]:
        """Returns the sums over all records of all ranks, by name."""
        return dict(zip(self.fields, self.sums.tolist(), strict=True))

    def compute(self) -> dict[str, Tensor]:
        """The values by name: float64, no dimensions, NaN where there was nothing to judge."""
        return {name: scalar(value) for name, value in self.values(self.totals()).items()}

    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        """As `Metric.evaluate`.

        Raises:
            SailError: A record cannot be judged; the message names it.
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
    """The mean over answers of a score in [0, 1]. Its one value is called `key`, by default the class's name.

    A subclass must define `answer_score` only.
    """

    fields = ("units", "count")
    key: ClassVar[str] = ""

    @abstractmethod
    def answer_score(self, record: EvalRecord) -> float | None:
        """Returns the score of one answer, in [0, 1], or None where the metric does not apply to it."""

    def score(self, record: EvalRecord) -> dict[str, int]:
        """Returns what one record adds to `units`, its score in fixed point, and to `count`.

        Raises:
            SailError: The score is not a number in [0, 1].
        """
        value = self.answer_score(record)
        if value is None:
            return {}
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not 0 <= number <= 1:
            raise SailError(f"{type(self).__name__} scores it {value!r}, but a score must be a number from 0 to 1")
        return {"units": to_fixed_point(number), "count": 1}

    def values(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        return {self.key or type(self).__name__: mean(sums["units"], sums["count"])}

    def sample(self, record: EvalRecord, row: Mapping[str, int]) -> dict[str, Any]:
        value = row["units"] / FIXED_POINT_ONE if row.get("count") else None
        return {self.key or type(self).__name__: value}


class GatheredMetric(Metric):
    """A metric that is not a sum over answers: what it needs of each answer is gathered from all ranks, as JSON lines.

    Lines are sorted before use, so batches and ranks change no result. The package does not log such metrics of its own
    during validation, because they keep all answers in memory; such a metric of your own is logged.
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
        """Returns what the metric keeps of a record, as a value that JSON holds."""

    @abstractmethod
    def evaluate_entries(self, entries: Sequence[Any]) -> MetricResult:
        """Returns the result of the entries that were kept of some records."""

    def order(self, entry: Any) -> Any:
        """Returns the key by which the entries of all ranks are sorted; a result may depend on no other order."""
        return 0

    def update(self, record: EvalRecord) -> None:
        """Adds one record.

        Raises:
            SailError: The record cannot be judged; the message names it.
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
        """Judges a set of records in the order given, as `Metric.evaluate` does."""
        return self.evaluate_entries([self._named(record) for record in records])

    def _named(self, record: EvalRecord) -> Any:
        with record.named():
            return self.entry(record)


__getattr__ = renamed(__name__, {"Options": "sail_lightning.evaluate.rules:Rules"})
