"""Evaluation: records of answers, the metrics that judge them, and reports. This is the one door to it.

`EvalRecord` is what every metric sees; `Metric` is the seam for metrics of your own; `Judge` gives the values that are
logged, and `score` the reports. `measure`, which needs Lightning, is in `sail_lightning.evaluate.measure`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sail_lightning.settings.renames import warn

__all__ = [
    "Cider",
    "EvalRecord",
    "ExactMatch",
    "GatheredMetric",
    "GroundedCaption",
    "Judge",
    "Kind",
    "MaskAveragePrecision",
    "MeanScore",
    "Meteor",
    "MeteorLite",
    "Metric",
    "MetricResult",
    "MultipleChoiceAccuracy",
    "ReferringSegmentation",
    "Report",
    "Rules",
    "SumMetric",
    "TokenF1",
    "TorchMetric",
    "VisualTextReferring",
    "YesNo",
    "bert_phrases",
    "compare",
    "kind_of",
    "markdown_table",
    "parse_choice",
    "read_records",
    "score",
    "token_f1",
    "write_csv",
]

if TYPE_CHECKING:
    from sail_lightning.evaluate.benchmarks import Kind, kind_of
    from sail_lightning.evaluate.comparison import compare
    from sail_lightning.evaluate.judge import Judge
    from sail_lightning.evaluate.metric import GatheredMetric, MeanScore, Metric, MetricResult, SumMetric
    from sail_lightning.evaluate.metrics.average_precision import MaskAveragePrecision
    from sail_lightning.evaluate.metrics.captions import ExactMatch, MeteorLite, TokenF1
    from sail_lightning.evaluate.metrics.choices import MultipleChoiceAccuracy
    from sail_lightning.evaluate.metrics.cider import Cider
    from sail_lightning.evaluate.metrics.grounded import GroundedCaption
    from sail_lightning.evaluate.metrics.meteor import Meteor
    from sail_lightning.evaluate.metrics.segmentation import ReferringSegmentation, VisualTextReferring
    from sail_lightning.evaluate.metrics.similarity import bert_phrases
    from sail_lightning.evaluate.metrics.text import parse_choice, token_f1
    from sail_lightning.evaluate.metrics.yes_no import YesNo
    from sail_lightning.evaluate.record import EvalRecord, read_records
    from sail_lightning.evaluate.rules import Rules
    from sail_lightning.evaluate.scoring import Report, score
    from sail_lightning.evaluate.table import markdown_table, write_csv
    from sail_lightning.evaluate.torch_metric import TorchMetric

_HOMES = {
    "benchmarks": "Kind kind_of",
    "comparison": "compare",
    "judge": "Judge",
    "metric": "GatheredMetric MeanScore Metric MetricResult SumMetric",
    "metrics.average_precision": "MaskAveragePrecision",
    "metrics.captions": "ExactMatch MeteorLite TokenF1",
    "metrics.choices": "MultipleChoiceAccuracy",
    "metrics.cider": "Cider",
    "metrics.grounded": "GroundedCaption",
    "metrics.meteor": "Meteor",
    "metrics.segmentation": "ReferringSegmentation VisualTextReferring",
    "metrics.similarity": "bert_phrases",
    "metrics.text": "parse_choice token_f1",
    "metrics.yes_no": "YesNo",
    "record": "EvalRecord read_records",
    "rules": "Rules",
    "scoring": "Report score",
    "table": "markdown_table write_csv",
    "torch_metric": "TorchMetric",
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names.split()}


_RENAMED = {"Answer": "EvalRecord", "read_answers": "read_records"}
"""Old names of the package by their new ones; they work for one version, with a warning."""


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, because torch and matplotlib take seconds to import."""
    if name in _RENAMED:
        warn(f"{__name__}.{name}", f"{__name__}.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
