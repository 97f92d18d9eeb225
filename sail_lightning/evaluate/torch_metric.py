"""Makes any metric of torchmetrics a metric of answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torchmetrics
from numpy.typing import NDArray
from torch import Tensor

from sail_lightning.compat.torchmetrics import added, all_metrics, alone, is_additive, set_added
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate.fixed_point import scalar
from sail_lightning.evaluate.metric import Floats, Metric, MetricResult
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.registry import register

Form = Literal["masks", "text", "references"]
_MOST_CELLS = 1 << 26
"""Largest number of float64 values of all records' states that are kept for intervals (half a gigabyte)."""


@register
class TorchMetric(Metric):
    """A metric of torchmetrics on answers, updated with the inputs of each record that it takes.

    | takes | `update` gets |
    |---|---|
    | `masks` | predicted and true mask, united, (1, H, W) int64 of 0 and 1; ignored pixels are 0 in both |
    | `text` | `[prediction]` and `[reference]`, the first reference |
    | `references` | `[prediction]` and `[[reference, ...]]` |

    It must return one number, or several by name. A report has its interval if its states are sums.

    Args:
        metric: A metric such as `torchmetrics.classification.BinaryJaccardIndex`.
        takes: The inputs that it takes of each record: `masks`, `text` or `references`.

    Raises:
        SailUsageError: `takes` is none of these.
    """

    count: Tensor

    def __init__(self, metric: torchmetrics.Metric, takes: Form = "masks") -> None:
        super().__init__()
        if takes not in get_args(Form):
            raise SailUsageError(f"takes must be {', '.join(get_args(Form))}, not {takes!r}")
        self.form: Form = takes
        self.metric = metric
        for one in all_metrics(metric):
            one.compute_with_cache = False  # a rank without a new record would skip the collective operation
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def judges(self, record: EvalRecord) -> bool:
        if self.form == "masks":
            return record.has_masks and bool(len(record.pred) or len(record.target) or record.size)
        return record.has_words

    def update(self, record: EvalRecord) -> None:
        self.metric.update(*self._inputs(record, self.device))
        self.count = self.count + 1

    def compute(self) -> dict[str, Tensor]:
        """Returns `value`, or the values by the names that the metric gives them; none without records."""
        if not int(self.count):  # of all ranks: either all of them ask the metric, which gathers, or none does
            return {}
        return {name: scalar(value) for name, value in _numbers(self.metric.compute()).items()}

    def reset(self) -> None:
        """Forgets all records."""
        super().reset()
        self.metric.reset()

    def evaluate(self, records: Sequence[EvalRecord]) -> MetricResult:
        metric = alone(self.metric)
        additive = is_additive(metric)
        samples, rows = [], []
        with _quiet():
            for record in records:
                metric.reset()
                with record.named():
                    metric.update(*self._inputs(record, metric.device))
                rows.append(added(metric) if additive else np.zeros(0))
                found = _numbers(metric.compute())
                samples.append({name: None if math.isnan(value) else value for name, value in found.items()})
            metric.reset()
            for record in records:
                metric.update(*self._inputs(record, metric.device))
            values = _numbers(metric.compute()) if records else {}
        note = "" if additive else f"the states of {type(metric).__name__} are no sums"
        table = np.stack(rows) if rows else np.zeros((0, 0))
        if table.size > _MOST_CELLS:
            table, note = table[:, :0], f"the states of {type(metric).__name__} take too much memory"
        return TorchResult(metric, table, values, samples, note)

    def _inputs(self, record: EvalRecord, device: torch.device) -> tuple[Any, Any]:
        if self.form == "masks":
            pred, target = (torch.from_numpy(mask[None]).to(device, torch.int64) for mask in record.united_masks())
            return pred, target
        references = list(record.reference) or [record.truth]
        return [record.prediction], [references] if self.form == "references" else references[:1]


@dataclass(frozen=True)
class TorchResult(MetricResult):
    """The result of a torchmetrics metric. `table`, (records, numbers) float64, is what each record adds to the
    metric's states; it is empty if they are not sums."""

    metric: torchmetrics.Metric
    table: NDArray[np.float64]
    values: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]
    note: str

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        if self.note:
            return {}
        found: dict[str, list[float]] = {name: [] for name in self.values}
        with _quiet():
            for sums in drawn @ self.table:
                set_added(self.metric, sums)
                for name, value in _numbers(self.metric.compute()).items():
                    found[name].append(value)
        return {name: np.array(values) for name, values in found.items()}


def _numbers(found: Any) -> dict[str, float]:
    """Returns the numbers that a metric computed, by name."""
    values = found if isinstance(found, dict) else {"value": found}
    for name, value in values.items():
        if (size := value.numel() if isinstance(value, Tensor) else np.size(value)) != 1:
            raise SailError(f"it gives {size} numbers as {name}; choose an average, so that it gives one")
    return {str(name): float(value) for name, value in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torchmetrics' warnings about a single record or draw within this context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
