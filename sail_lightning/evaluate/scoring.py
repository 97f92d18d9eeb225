"""Scores records under given rules, and returns one report per benchmark."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torchmetrics

from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.evaluate import own
from sail_lightning.evaluate.benchmark_metrics import reported
from sail_lightning.evaluate.benchmarks import Kind, kind_of, kind_of_task, named_kind, perbench_name
from sail_lightning.evaluate.bootstrap import intervals, replicates
from sail_lightning.evaluate.metric import Floats, Metric, MetricResult
from sail_lightning.evaluate.metrics.image_order import image_order
from sail_lightning.evaluate.metrics.text import token_f1
from sail_lightning.evaluate.record import EvalRecord
from sail_lightning.evaluate.rules import Combine, NoTargetFrom, ProtocolName, Rules, Similarity

PERBENCH_TASKS: tuple[Kind, ...] = ("perbench_caption", "perbench_mcq", "perbench_vres")


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The metrics of the answers to one benchmark.

    `metrics` are fractions in [0, 1] (CIDEr up to 10, `perbench_overall` up to 100), without those that had nothing to
    judge. `intervals` are their 95 % bootstrap intervals, `counts` whole numbers, `settings` what the metrics depend
    on, as JSON, and `notes` say why a metric has no interval. `per_sample` holds the scores of each of `records`, which
    are the given ones in order, without repeated ones. `replicates` are the bootstrap's values, (rounds,) float64 each.
    """

    benchmark: str
    kind: str
    protocol: ProtocolName
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    counts: dict[str, int]
    per_sample: list[dict[str, Any]] = field(default_factory=list)
    records: list[EvalRecord] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    replicates: dict[str, Floats] = field(default_factory=dict, repr=False)


def score(
    records: Iterable[EvalRecord],
    protocol: ProtocolName = "standard",
    no_target_from: NoTargetFrom = "mask",
    combine: Combine | None = None,
    similarity: Similarity = token_f1,
    bootstrap: int = 1000,
    seed: int = 0,
    meteor: bool = True,
    metrics: Mapping[str, torchmetrics.Metric] | None = None,
) -> dict[str, Report]:
    """Judges records, benchmark by benchmark.

    Neither the order of the records nor a repeated record changes a value: of answers with the same id to the same
    question with the same truth, the first counts. Records of different `number` (index in their source) are different
    questions, so that a source that holds a question twice is reported as it is logged.

    Args:
        records: Records of any number of benchmarks, in any order.
        protocol: As in `Rules`.
        no_target_from: As in `Rules`.
        combine: As in `Rules`.
        similarity: As in `Rules`.
        bootstrap: Number of draws for the intervals; 0 for none.
        seed: Seed of the draws.
        meteor: As in `Rules`.
        metrics: Metrics of your own, by name (`own.checked`).

    Returns:
        Reports by benchmark, in the order in which benchmarks first occur. Where all three tasks of PerBench occur, one
        more report, under their common name, holds `perbench_overall`; with `meteor_lite` in place of METEOR it is
        `perbench_overall_lite`.

    Raises:
        SailUsageError: An option does not exist, or contradicts the protocol.
        SailError: A record cannot be judged; the message names it.
    """
    rules = Rules(protocol, no_target_from, combine, similarity, meteor)
    return reports_of(records, rules, own.checked(metrics), bootstrap, seed)


def reports_of(
    records: Iterable[EvalRecord], rules: Rules, metrics: Mapping[str, Metric], bootstrap: int, seed: int
) -> dict[str, Report]:
    """Judges records as `score` does, with given rules and checked metrics."""
    if bootstrap < 0:
        raise SailUsageError(f"bootstrap must be 0 or more draws, not {bootstrap}")
    own.check_rules(metrics, rules)
    settings = rules.to_json() | {"bootstrap": bootstrap, "seed": seed}
    rules = replace(rules, similarity=rules.cached_similarity())
    groups: dict[str, list[EvalRecord]] = {}
    for record in records:
        groups.setdefault(record.benchmark, []).append(record)
    reports = {name: _report(name, group, rules, metrics, settings) for name, group in groups.items()}
    return reports | _overall(reports, rules.protocol, settings)


@dataclass(frozen=True)
class _Judged:
    """The result of a metric on the records of a benchmark at the indices `places`; `name` is that of a metric of the
    user's own, None for a built-in one."""

    result: MetricResult
    places: list[int]
    name: str | None = None

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(values) if self.name is None else own.named_values(self.name, values)

    def resampled(self, drawn: Floats) -> dict[str, Floats]:
        return self.named(self.result.resampled(drawn[:, self.places]))

    @property
    def counts(self) -> dict[str, int]:
        prefix = "" if self.name is None else f"{self.name}_"
        return {f"{prefix}{key}": count for key, count in self.result.counts.items()}


def _report(
    name: str,
    group: Sequence[EvalRecord],
    rules: Rules,
    own_metrics: Mapping[str, Metric],
    settings: Mapping[str, Any],
) -> Report:
    first: dict[tuple[str, int], EvalRecord] = {}
    for record in group:
        first.setdefault((record.dedup_key, -1 if record.number is None else record.number), record)
    kept, keys = list(first.values()), list(first)
    # Ranking and drawing go by name, so that no value depends on the order in which records come.
    order = sorted(range(len(kept)), key=lambda index: (image_order(kept[index].id), keys[index]))
    kind = _kind(name, kept)
    judged = _judged([replace(kept[index], kind=kind) for index in order], kind, rules, own_metrics)
    metrics: dict[str, float] = {}
    counts = {"answers": len(kept), "duplicates": len(group) - len(kept)}
    notes: dict[str, str] = {}
    samples: list[dict[str, Any]] = [{} for _ in kept]
    for one in judged:
        values = {key: value for key, value in one.named(one.result.values).items() if not math.isnan(value)}
        metrics |= values
        counts |= one.counts
        notes |= dict.fromkeys(values, one.result.note) if one.result.note else {}
        for place, sample in zip(one.places, one.result.samples, strict=True):
            samples[order[place]] |= one.named(sample)
    drawn = replicates(judged, len(kept), settings["bootstrap"], settings["seed"], name)
    drawn = {key: values for key, values in drawn.items() if key in metrics}
    return Report(
        benchmark=name,
        kind=kind,
        protocol=rules.protocol,
        metrics=metrics,
        intervals=intervals(drawn),
        counts=counts,
        per_sample=samples,
        records=kept,
        settings=dict(settings),
        notes=notes,
        replicates=drawn,
    )


def _kind(name: str, records: Sequence[EvalRecord]) -> Kind:
    """Returns the kind of a benchmark by its name and all its records.

    Raises:
        SailError: Its name decides nothing, and its questions belong to tasks that are judged in different ways.
    """
    tasks = {record.task for record in records}
    kinds = {kind_of_task(task): task for task in sorted(tasks, key=str) if kind_of_task(task) is not None}
    if len(kinds) > 1 and named_kind(name) is None:
        raise SailError(
            f"benchmark {name} holds questions of the tasks {' and '.join(map(str, kinds.values()))}, which "
            "are judged in different ways; give each a benchmark of its own"
        )
    keys = {key for record in records for key in record.present_keys}
    answers = [record.true_answer for record in records if record.true_answer]
    return kind_of(name, keys, answers, next(iter(kinds.values()), None))


def _judged(
    records: Sequence[EvalRecord], kind: Kind, rules: Rules, own_metrics: Mapping[str, Metric]
) -> list[_Judged]:
    everything = list(range(len(records)))
    judged = [_Judged(metric.evaluate(records), everything) for metric in reported(kind, records, rules)]
    for name, metric in own_metrics.items():
        with own.failing_as(name):
            places = [place for place, record in enumerate(records) if metric.judges(record)]
        if places:
            result = own.evaluate(name, metric, [records[place] for place in places])
            judged.append(_Judged(result, places, name))
            if all(math.isnan(value) for value in result.values.values()):  # such as a method without `return`
                logger.warning(
                    "metric %s scored none of the %d answers of %s: %s gives no score for any",
                    *(name, len(places), records[0].benchmark, type(metric).__name__),
                )
    return judged


def _overall(reports: Mapping[str, Report], protocol: ProtocolName, settings: Mapping[str, Any]) -> dict[str, Report]:
    """Returns a report of each PerBench with all three tasks: mean(100 METEOR, 100 MCQ, 100 (cIoU + gIoU) / 2)."""
    benches: dict[str, tuple[str, dict[str, Report]]] = {}
    for name, report in reports.items():
        common = perbench_name(name)
        if common is not None:
            benches.setdefault(common.casefold(), (common, {}))[1][report.kind] = report
    found: dict[str, Report] = {}
    for common, tasks in benches.values():
        if set(tasks) != set(PERBENCH_TASKS):
            continue
        if common in reports:
            raise SailError(f"benchmark {common} is also the name of PerBench's overall score; call it otherwise")
        caption, choice, vres = (tasks[kind] for kind in PERBENCH_TASKS)
        meteor = "meteor" if "meteor" in caption.metrics else "meteor_lite"
        key = "perbench_overall" if meteor == "meteor" else "perbench_overall_lite"
        if "giou" not in vres.metrics:  # no question with a target
            continue
        sides = [(task.metrics, task.replicates) for task in (caption, choice, vres)]
        exact, drawn = (_mean_of_tasks(side, meteor) for side in zip(*sides, strict=True))
        values = {} if drawn is None else {key: drawn}
        found[common] = Report(
            benchmark=common,
            kind="perbench",
            protocol=protocol,
            metrics={key: float(exact)},
            intervals=intervals(values),
            counts={"answers": sum(report.counts["answers"] for report in tasks.values())},
            settings=dict(settings),
            replicates=values,
        )
    return found


def _mean_of_tasks(tasks: Sequence[Mapping[str, Any]], meteor: str) -> Any:
    """Returns the paper's overall score, 0 to 100, of the metrics of three tasks, or of their metrics in each draw;
    None where there are none."""
    caption, choice, vres = tasks
    if not caption:
        return None
    return 100 * (caption[meteor] + choice["mcq_accuracy"] + (vres["ciou"] + vres["giou"]) / 2) / 3
