"""One object that judges all answers: what it logs and what it reports come from the same metrics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torchmetrics
from torch import nn

from sail_lightning.errors import SailUsageError
from sail_lightning.evaluate import own
from sail_lightning.evaluate.benchmark_metrics import METRICS, logged
from sail_lightning.evaluate.benchmarks import Benchmark, Kind, check_benchmark, kind_of, kind_of_task, named_kind
from sail_lightning.evaluate.metric import Metric
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Rules
from sail_lightning.evaluate.scoring import Report, reports_of


class Judge(nn.Module):
    """Judges records by the metrics of their benchmark, and by metrics of your own.

    | kind of benchmark, or task | logged |
    |---|---|
    | masks (`refer`) | `ciou giou n_acc t_acc pr@0.5 ... pr@0.9` |
    | `perbench_vres`, `vres` | `vres_ciou vres_giou` |
    | captions (`describe`) | `meteor_lite token_f1`, and `exact_match` except of `perbench_caption` |
    | multiple choice (`choice`) | `mcq_accuracy` |
    | `gcg` (`caption`) | `gcg_miou gcg_recall caption_f1` |
    | `pope` | `accuracy precision recall f1 yes_ratio` |
    | `chat` | none, unless the benchmark's name says what it is |

    A report (`score`) has all of these, from the same table (`benchmark_metrics`), and the metrics that need all
    answers at once.

    Args:
        rules: Rules by which answers are judged; None means the standard protocol.
        metrics: Metrics of your own, by name: a `Metric`, or a torchmetrics metric (`own.checked`). Null switches one
            off.
        benchmark: Name of the benchmark, or a name for each task; None names the benchmark of each answer by its task.

    Raises:
        SailUsageError: A metric or a benchmark is not valid.
    """

    def __init__(
        self,
        rules: Rules | None = None,
        metrics: Mapping[str, torchmetrics.Metric | None] | None = None,
        benchmark: Benchmark = None,
    ) -> None:
        super().__init__()
        check_benchmark(benchmark)
        self.rules, self.benchmark = rules or Rules(), benchmark
        self.logged = logged(replace(self.rules, similarity=self.rules.cached_similarity()))
        """The built-in metrics that are logged, by their entry in the table `benchmark_metrics.METRICS`."""
        self.own = own.checked(metrics)
        own.check_rules(self.own, self.rules)
        self._modules_of_metrics = nn.ModuleList(self._all_metrics())
        self._kinds: dict[str, Kind] = {}

    def _all_metrics(self) -> list[Metric]:
        """Returns every metric, in the same order on every rank."""
        return [*self.logged.values(), *self.own.values()]

    def update(self, record: EvalRecord) -> None:
        """Adds one answer to the metrics of its benchmark.

        Raises:
            SailUsageError: Questions that are judged in different ways have the same benchmark's name.
            SailError: A metric of the package or of your own cannot judge the record; the message names both.
        """
        kind = record.kind or kind_of(record.benchmark, record.present_keys, [record.true_answer or ""], record.task)
        self._check_kind(record)
        record = replace(record, kind=kind)
        for metric in self._logged_of(record, kind):
            metric.update(record)
        for name, metric in self.own.items():
            with own.failing_as(name, record):
                if metric.judges(record):
                    metric.update(record)

    def _logged_of(self, record: EvalRecord, kind: Kind) -> list[Metric]:
        if record.task == "chat" and named_kind(record.benchmark) is None:
            return []
        return [self.logged[entry] for entry in METRICS[kind] if entry in self.logged]

    def _check_kind(self, record: EvalRecord) -> None:
        kind = kind_of_task(record.task)
        if kind is None or not record.benchmark or named_kind(record.benchmark) is not None:
            return
        if self._kinds.setdefault(record.benchmark, kind) != kind:
            raise SailUsageError(
                f"benchmark {record.benchmark} holds questions of different tasks, {record.task} among them, which are "
                f"judged in different ways; name a benchmark for each task, such as {{{record.task}: NAME}}"
            )

    def compute(self) -> dict[str, float]:
        """Returns the values over all ranks, by the names under which they are logged; those with nothing to judge are
        left out.

        This is a collective operation: every rank calls it, also one that saw no record, and all get the same result.
        """
        found: dict[str, float] = {}
        with warnings.catch_warnings():
            # Other ranks may have met a task that this rank never saw.
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            for entry, metric in self.logged.items():
                values = metric.compute()
                found |= {name: float(values[key]) for key, name in entry.logged.items()}
            for name, metric in self.own.items():
                with own.failing_as(name):
                    found |= {key: float(value) for key, value in own.named_values(name, metric.compute()).items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def reset(self) -> None:
        """Forgets all answers."""
        self._kinds = {}
        for metric in self._all_metrics():
            metric.reset()

    def reports(self, records: Iterable[EvalRecord], bootstrap: int = 1000, seed: int = 0) -> dict[str, Report]:
        """Returns a report for each benchmark of the records, as `score` does."""
        return reports_of(records, self.rules, self.own, bootstrap, seed)
