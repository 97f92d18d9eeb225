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
from sail_lightning.evaluate.benchmarks import Benchmark, Kind, check_benchmark, kind_of, kind_of_task, named_kind
from sail_lightning.evaluate.metric import Metric
from sail_lightning.evaluate.metrics.captions import ExactMatch, MeteorLite, TokenF1
from sail_lightning.evaluate.metrics.choices import MultipleChoiceAccuracy
from sail_lightning.evaluate.metrics.expressions import PRECISIONS
from sail_lightning.evaluate.metrics.grounded import GroundedCaption
from sail_lightning.evaluate.metrics.segmentation import ReferringSegmentation, VisualTextReferring
from sail_lightning.evaluate.metrics.yes_no import YesNo
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Rules
from sail_lightning.evaluate.scoring import Report, reports_of

Panel = list[tuple[Metric, dict[str, str]]]
"""Metrics that are logged together, each with a mapping of its values' names to the names under which they are
logged."""
_PANEL_OF: dict[Kind, str] = {
    "gcg": "caption",
    "region_caption": "describe",
    "perbench_caption": "describe",
    "perbench_mcq": "choice",
    "mcq": "choice",
    "perbench_vres": "vres",
    "pope": "pope",
}
"""The panel of each kind of benchmark; all other kinds have the panel `refer`."""


def _panels(rules: Rules) -> dict[str, Panel]:
    protocol = rules.protocol
    referring = ReferringSegmentation(protocol, rules.no_target_from, rules.combine)

    def same(*names: str) -> dict[str, str]:
        return {name: name for name in names}

    return {
        "refer": [(referring, same("ciou", "giou", "n_acc", "t_acc", *PRECISIONS))],
        "vres": [(VisualTextReferring(protocol), {"ciou": "vres_ciou", "giou": "vres_giou"})],
        "describe": [
            (ExactMatch(protocol), same("exact_match")),
            (TokenF1(protocol), same("token_f1")),
            (MeteorLite(protocol), same("meteor_lite")),
        ],
        "choice": [(MultipleChoiceAccuracy(protocol), same("mcq_accuracy"))],
        "caption": [
            (GroundedCaption(protocol, rules.cached_similarity()), same("gcg_miou", "gcg_recall")),
            (TokenF1(protocol), {"token_f1": "caption_f1"}),
        ],
        "pope": [(YesNo(protocol), same("accuracy", "precision", "recall", "f1", "yes_ratio"))],
    }


class Judge(nn.Module):
    """Judges records by the metrics of their benchmark, and by metrics of your own.

    | kind of benchmark, or task | logged |
    |---|---|
    | masks (`refer`) | `ciou giou n_acc t_acc pr@0.5 ... pr@0.9` |
    | `perbench_vres`, `vres` | `vres_ciou vres_giou` |
    | captions (`describe`) | `exact_match token_f1 meteor_lite` |
    | multiple choice (`choice`) | `mcq_accuracy` |
    | `gcg` (`caption`) | `gcg_miou gcg_recall caption_f1` |
    | `pope` | `accuracy precision recall f1 yes_ratio` |
    | `chat` | none, unless the benchmark's name says what it is |

    A report (`score`) has all of these, and the metrics that need all answers at once.

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
        self.panels = _panels(self.rules)
        self.own = own.checked(metrics)
        self._modules_of_metrics = nn.ModuleList(self._all_metrics())
        self._kinds: dict[str, Kind] = {}

    def _all_metrics(self) -> list[Metric]:
        """Returns every metric, in the same order on every rank."""
        return [metric for panel in self.panels.values() for metric, _ in panel] + list(self.own.values())

    def update(self, record: EvalRecord) -> None:
        """Adds one answer to the metrics of its benchmark.

        Raises:
            SailUsageError: Questions that are judged in different ways have the same benchmark's name.
            SailError: A metric of the package or of your own cannot judge the record; the message names both.
        """
        kind = record.kind or kind_of(record.benchmark, record.present_keys, [record.true_answer or ""], record.task)
        self._check_kind(record)
        record = replace(record, kind=kind)
        for metric, _ in self._panel(record, kind):
            metric.update(record)
        for name, metric in self.own.items():
            with own.failing_as(name, record):
                if metric.judges(record):
                    metric.update(record)

    def _panel(self, record: EvalRecord, kind: Kind) -> Panel:
        if record.task == "chat" and named_kind(record.benchmark) is None:
            return []
        return self.panels[_PANEL_OF.get(kind, "refer")]

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
            for panel in self.panels.values():
                for metric, names in panel:
                    values = metric.compute()
                    found |= {name: float(values[key]) for key, name in names.items()}
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
