"""Metrics of your own, by name: they are checked, built from a config, and kept apart from the built-in ones."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torchmetrics
import yaml

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError, refusal_within
from sail_lightning.evaluate.metric import Metric, MetricResult
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Rules
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
"""Names of the built-in metrics' values and of answers' scores, which a metric of your own cannot take."""
_FORMS: dict[str, Form] = {
    "torchmetrics.classification": "masks",
    "torchmetrics.segmentation": "masks",
    "torchmetrics.text": "text",
}


def checked(metrics: Mapping[str, torchmetrics.Metric | None] | None) -> dict[str, Metric]:
    """Returns metrics by name, with those of torchmetrics wrapped; a null switches one off.

    Raises:
        SailUsageError: A name is not valid or is that of a built-in metric, or a metric does not say which inputs it
            takes.
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


def check_rules(metrics: Mapping[str, Metric], rules: Rules) -> None:
    """Checks that built-in metrics under other names were not left at rules that the evaluation does not go by.

    Raises:
        SailUsageError: A rule of a metric is the default, and that of the evaluation is not.
    """
    default = Rules()
    for name, metric in metrics.items():
        if not isinstance(mine := getattr(metric, "rules", None), Rules):
            continue
        taken = inspect.signature(type(metric).__init__).parameters
        for rule in ("protocol", "no_target_from", "combine"):
            value, wanted = getattr(mine, rule), getattr(rules, rule)
            if rule in taken and value == getattr(default, rule) != wanted:
                raise SailUsageError(
                    f"model.metrics.{name}: {type(metric).__name__} has {rule} {value}, but the evaluation has "
                    f"{wanted}; give the metric init_args: {{{rule}: {wanted}}}, or leave it out"
                )


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
    """Builds metrics from options such as `biou=BoundaryIoU` or
    `biou={class_path: BoundaryIoU, init_args: {width: 0.01}}`.

    Raises:
        SailUsageError: An option has another form, a name occurs twice, or `build` refuses a metric.
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
    """Builds metrics from a config, which gives each a class's name, or `class_path` and `init_args`.

    Raises:
        SailUsageError: A class does not exist, its arguments are wrong, or `checked` refuses a metric.
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
            if fault := refusal_within(error):
                raise fault from None
            shown = spec.get("class_path", spec) if isinstance(spec, Mapping) else spec
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
    """Returns the values of the metric `name` as they are logged and reported: one value as `name`, several as
    `name_KEY`."""
    return {name if len(values) == 1 else f"{name}_{key}": value for key, value in values.items()}


@contextmanager
def failing_as(name: str, record: EvalRecord | None = None) -> Iterator[None]:
    """Turns any exception within this context into a `SailError` that names the metric `name` and the record."""
    try:
        yield
    except Exception as error:
        detail = str(error)
        if not isinstance(error, SailError):
            detail = f"{type(error).__name__}: {' '.join(detail.split())} ({_place(error)})"
        if detail.startswith(f"metric {name}: "):
            raise
        at = f"{record.name}: " if record is not None and record.name not in detail else ""
        raise SailError(f"metric {name}: {at}{detail}") from error


def _place(error: Exception) -> str:
    """Returns the file and line of a metric's own code where an error arose."""
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).parents[1]
    paths = [Path(frame.filename) for frame in frames]
    own = [package not in path.parents and "site-packages" not in path.parts for path in paths]
    last = next((frame for frame, mine in zip(frames[::-1], own[::-1], strict=True) if mine), frames[-1])
    return f"{Path(last.filename).name}, line {last.lineno}"


def evaluate(name: str, metric: Metric, records: Sequence[EvalRecord]) -> MetricResult:
    """Calls `Metric.evaluate` of the metric `name`, so that an error names the metric and the record.

    Raises:
        SailError: The metric cannot judge a record.
    """
    with failing_as(name):
        try:
            return metric.evaluate(records)
        except SailError:
            raise
        except Exception:
            for record in records:  # finds the record that fails
                with failing_as(name, record):
                    metric.evaluate([record])
            raise
