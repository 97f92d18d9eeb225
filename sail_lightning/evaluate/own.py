"""Metrics of your own, by name: checked, made from what a config says, and told apart from the built-in ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torchmetrics
import yaml

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate.metric import Metric, MetricResult
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.torch_metric import Form, TorchMetric

_VALUES = """
ciou giou n_acc t_acc pr@0.5 pr@0.6 pr@0.7 pr@0.8 pr@0.9 vres_ciou vres_giou exact_match token_f1 meteor
meteor_lite cider mcq_accuracy mcq_accuracy_substring gcg_miou gcg_recall gcg_ap50 gcg_ap caption_f1 accuracy precision
recall f1 yes_ratio perbench_overall perbench_overall_lite
"""
_SCORES = """
iou ious intersection union no_target no_target_mask no_target_text missing masks recalled phrases correct
correct_substring choice yes
"""
BUILT_IN = frozenset([*_VALUES.split(), *_SCORES.split()])
"""Names of the package's own values and of answers' scores."""
_FORMS: dict[str, Form] = {
    "torchmetrics.classification": "masks",
    "torchmetrics.segmentation": "masks",
    "torchmetrics.text": "text",
}


def checked(metrics: Mapping[str, torchmetrics.Metric | None] | None) -> dict[str, Metric]:
    """Metrics by name, those of torchmetrics wrapped; a null switches one off.

    Raises:
        SailUsageError: a name that cannot be or is that of a built-in metric, or a metric that nothing says how to
            feed.
    """
    found = {}
    for name, metric in (metrics or {}).items():
        if metric is None:
            continue
        if not re.fullmatch(r"[A-Za-z_][\w@-]*", name):
            raise SailUsageError(f"model.metrics: {name!r} is no name; use letters, digits, _, @ and -")
        if name in BUILT_IN or any(other.startswith(f"{name}_") for other in BUILT_IN):
            raise SailUsageError(f"model.metrics: {name} is a name of the built-in metrics; choose another")
        found[name] = metric if isinstance(metric, Metric) else _wrapped(name, metric)
    return found


def _wrapped(name: str, metric: torchmetrics.Metric) -> TorchMetric:
    if not isinstance(metric, torchmetrics.Metric):
        raise SailUsageError(f"model.metrics.{name} must be a metric, not {type(metric).__name__}")
    module = type(metric).__module__
    form = next((form for package, form in _FORMS.items() if module.startswith(f"{package}.")), None)
    if form is None:
        raise SailUsageError(
            f"model.metrics.{name}: nothing says what {type(metric).__name__} takes; wrap it: class_path: "
            "sail_lightning.evaluate.TorchMetric, init_args: {metric: ..., takes: masks, text or references}"
        )
    return TorchMetric(metric, form)


def from_options(words: Iterable[str]) -> dict[str, Metric]:
    """Metrics from options such as `biou=BoundaryIoU` or `biou={class_path: BoundaryIoU, init_args: {width: 0.01}}`.

    Raises:
        SailUsageError: a word of another form, a name that comes twice, or as `build`.
    """
    specs: dict[str, Any] = {}
    for word in words:
        name, equals, spec = word.partition("=")
        if not equals or not spec.strip():
            raise SailUsageError(f"--metrics takes NAME=CLASS, such as biou=BoundaryIoU, not {word!r}")
        if name in specs:
            raise SailUsageError(f"--metrics names {name} twice; choose another name")
        try:
            specs[name] = yaml.safe_load(spec)
        except yaml.YAMLError:
            raise SailUsageError(f"--metrics {name}: {spec!r} is neither a class nor a mapping in YAML") from None
    return build(specs)


def build(specs: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics from what a config says about them: a class's name, or `class_path` and `init_args`.

    Raises:
        SailUsageError: no such class, wrong arguments, or as `checked`.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    registry.load_shipped()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=dict[str, Metric | torchmetrics.Metric | None])
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        try:
            made = parser.instantiate(parser.parse_object({"metrics": {name: spec}}))
        except (ArgumentError, ValueError, TypeError, ImportError) as error:
            if isinstance(error.__cause__, SailError):
                raise error.__cause__ from None
            shown = spec if isinstance(spec, str) else dict(spec).get("class_path", spec)
            raise SailUsageError(
                f"metric {name}: {shown} is no metric that can be made; name a class, with --plugins the file it is in "
                f"({_brief(error)})"
            ) from None
        found |= made.metrics
    return checked(found)


def _brief(error: Exception) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1][:200] if lines else type(error).__name__


def named_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the metric `name` as they are logged and reported: one value is `name`, several are `name_KEY`."""
    return {name if len(values) == 1 else f"{name}_{key}": value for key, value in values.items()}


@contextmanager
def failing_as(name: str, record: EvalRecord | None = None) -> Iterator[None]:
    """Within, any exception of the metric `name` becomes a `SailError` that names it and the record."""
    try:
        yield
    except Exception as error:
        told = str(error) if isinstance(error, SailError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        if told.startswith(f"metric {name}: "):
            raise
        at = f"{record.name}: " if record is not None and record.name not in told else ""
        raise SailError(f"metric {name}: {at}{told}") from error


def evaluate(name: str, metric: Metric, records: Sequence[EvalRecord]) -> MetricResult:
    """`Metric.evaluate`, with a fault named.

    Raises:
        SailError: the metric cannot judge a record.
    """
    with failing_as(name):
        try:
            return metric.evaluate(records)
        except SailError:
            raise
        except Exception:
            for record in records:  # which one is it?
                with failing_as(name, record):
                    metric.evaluate([record])
            raise
