"""Each variant beside the baseline, metric by metric, paired over seeds and over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sail_lightning.ablation.runs import REPORT, Result
from sail_lightning.ablation.statistics import Floats, Paired, Spread, holm, over_samples, over_seeds, spread
from sail_lightning.ablation.study import TableMetric
from sail_lightning.evaluate import read_records, score
from sail_lightning.evaluate.benchmarks import perbench_name
from sail_lightning.evaluate.stored_rules import stored_rules

ROUNDS = 1000
"""Draws of the bootstrap over samples."""


@dataclass(frozen=True)
class Cell:
    """One metric of one variant: its spread, and the differences from the baseline on the seeds that both have.

    None where there is nothing to compare: the baseline itself, no seed in common, one seed only (`over_seeds`), or
    questions that the baseline was not asked (`over_samples`).
    """

    values: dict[int, float]
    spread: Spread
    difference: float | None = None
    over_seeds: Paired | None = None
    over_samples: Paired | None = None


def compare(
    results: Sequence[Result], metrics: Sequence[TableMetric], baseline: str, folders: Mapping[tuple[str, int], Path]
) -> dict[str, dict[TableMetric, Cell]]:
    """All metrics of all variants, in the order in which the variants come first.

    The p values of each test are corrected over the variants, metric by metric.

    Args:
        results: Results of the runs that ended.
        metrics: Columns of the table; a variant without one lacks its cell.
        baseline: Name of the variant that the others are compared with.
        folders: Folders of the runs, by variant and seed; the answers in them are scored again.
    """
    by_variant: dict[str, dict[int, Result]] = {}
    for result in results:
        by_variant.setdefault(result.variant, {})[result.seed] = result
    scores = _Scores(folders, metrics)
    table: dict[str, dict[TableMetric, Cell]] = {}
    for variant, runs in by_variant.items():
        table[variant] = {}
        for metric in metrics:
            values = {seed: value for seed, result in runs.items() if (value := result.value(metric)) is not None}
            if not values:
                continue
            base = {}
            if variant != baseline:
                found = {seed: one.value(metric) for seed, one in by_variant.get(baseline, {}).items()}
                base = {seed: value for seed, value in found.items() if value is not None and seed in values}
            table[variant][metric] = _cell(values, base, runs, by_variant.get(baseline, {}), metric, scores)
    for metric in metrics:
        for test in ("over_seeds", "over_samples"):
            _correct([cells for cells in table.values() if metric in cells], metric, test)
    return table


def _correct(rows: Sequence[dict[TableMetric, Cell]], metric: TableMetric, test: str) -> None:
    """Corrects the p values of one test of a metric for the number of rows that have it."""
    tested = [(cells, one) for cells in rows if (one := getattr(cells[metric], test)) is not None]
    for (cells, one), p in zip(tested, holm([one.p for _, one in tested]), strict=True):
        cells[metric] = replace(cells[metric], **{test: replace(one, p_holm=p)})


def _cell(
    values: dict[int, float],
    base: dict[int, float],
    runs: Mapping[int, Result],
    base_runs: Mapping[int, Result],
    metric: TableMetric,
    scores: _Scores,
) -> Cell:
    if not base:
        return Cell(values, spread(list(values.values())))
    seeds = sorted(base)
    first, second = ([side[seed] for seed in seeds] for side in (base, values))
    difference = float(np.mean(second) - np.mean(first))
    draws = scores.difference([base_runs[seed] for seed in seeds], [runs[seed] for seed in seeds], metric)
    return Cell(
        values,
        spread(list(values.values())),
        difference,
        over_seeds(first, second),
        None if draws is None else over_samples(difference, draws),
    )


class _Scores:
    """Bootstrap draws of runs' metrics; each file of answers is scored once, for the benchmarks that `metrics` name."""

    def __init__(self, folders: Mapping[tuple[str, int], Path], metrics: Sequence[TableMetric]) -> None:
        self.folders = folders
        self.wanted: dict[str, set[str]] = {}
        for metric in metrics:
            self.wanted.setdefault(metric.evaluation, set()).add(metric.benchmark)
        self.meteor = any(metric.name in ("meteor", "perbench_overall") for metric in metrics)
        self._kept: dict[Path, tuple[dict[str, frozenset[str]], dict[str, dict[str, Floats]]]] = {}

    def difference(self, first: Sequence[Result], second: Sequence[Result], metric: TableMetric) -> Floats | None:
        """The mean difference over pairs of runs (rounds,), on the same questions drawn again in both.

        None where they were not asked the same questions, or the metric has no draws.
        """
        sides = [[self._draws(run, metric) for run in runs] for runs in (first, second)]
        asked = {questions for side in sides for questions, _ in side}
        if len(asked) != 1 or any(draws is None for side in sides for _, draws in side):
            return None
        means = [np.mean(np.stack([draws for _, draws in side if draws is not None]), axis=0) for side in sides]
        difference: Floats = means[1] - means[0]
        return difference

    def _draws(self, run: Result, metric: TableMetric) -> tuple[frozenset[str], Floats | None]:
        """The questions that the metric is about, and its draws."""
        path = self.folders[run.variant, run.seed] / run.answers[metric.evaluation]
        stored = stored_rules(path.with_name(REPORT))
        if not path.is_file() or stored is None:
            return frozenset(), None
        if path not in self._kept:
            wanted = self.wanted[metric.evaluation]
            answers = []
            asked: dict[str, set[str]] = {name: set() for name in wanted}
            for record in read_records(path):
                about = wanted & {record.benchmark, perbench_name(record.benchmark)}
                answers += [record] if about else []
                for name in about:
                    asked[name].add(record.dedup_key)
            metrics = stored.own_metrics()
            reports = score(answers, bootstrap=ROUNDS, meteor=self.meteor, metrics=metrics, **stored.rules)
            questions = {name: frozenset(truths) for name, truths in asked.items()}
            self._kept[path] = questions, {name: report.replicates for name, report in reports.items()}
        questions, draws = self._kept[path]
        return questions.get(metric.benchmark, frozenset()), draws.get(metric.benchmark, {}).get(metric.name)
