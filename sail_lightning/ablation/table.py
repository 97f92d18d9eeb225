"""The table of a study: Markdown for people, CSV for spreadsheets, JSON with every run for programs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sail_lightning.ablation.comparison import Cell
from sail_lightning.ablation.cost import Cost
from sail_lightning.ablation.runs import Result
from sail_lightning.ablation.statistics import Paired
from sail_lightning.ablation.study import Study, TableMetric

COSTS = tuple(field.name for field in fields(Cost))
Table = Mapping[str, Mapping[TableMetric, Cell]]


@dataclass(frozen=True)
class Findings:
    """All that a study found: the results of its runs, the table, and the last error of each run that failed."""

    study: Study
    results: Sequence[Result]
    table: Table
    failures: Mapping[tuple[str, int], str]

    def cost(self, variant: str) -> dict[str, float | None]:
        """The mean cost of a variant's runs."""
        found = {}
        for name in COSTS:
            values = [getattr(result.cost, name) for result in self.results if result.variant == variant]
            known = [value for value in values if value is not None]
            found[name] = statistics.fmean(known) if known else None
        return found

    def seeds(self, variant: str) -> list[int]:
        """The seeds of a variant's runs that ended."""
        return [result.seed for result in self.results if result.variant == variant]


def to_markdown(found: Findings) -> str:
    """The content of table.md."""
    study = found.study
    lines = [f"# Ablation: {study.name}", "", _budget(study), ""]
    names = [_short(metric, study) for metric in study.metrics]
    heads = ["seeds", *names, "train s", "tokens/s", "parameters", "peak GiB"]
    lines += [f"| variant | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for variant, cells in found.table.items():
        cost = found.cost(variant)
        shown = [
            str(len(found.seeds(variant))),
            *(_mean(cells.get(metric)) for metric in study.metrics),
            _number(cost["seconds"], ",.0f"),
            _number(cost["tokens_per_s"], ",.0f"),
            _number(cost["parameters"], ",.0f"),
            _number(cost["peak_memory_gib"], ".2f"),
        ]
        mark = " (baseline)" if variant == study.baseline else ""
        lines.append(f"| {variant}{mark} | {' | '.join(shown)} |")
    if any(cell.difference is not None for cells in found.table.values() for cell in cells.values()):
        lines += ["", f"## Differences from {study.baseline}", "", *_differences(found)]
    if found.failures:
        lines += ["", "## Failed", ""]
        lines += [f"- {variant}, seed {seed}: {error}" for (variant, seed), error in found.failures.items()]
    return "\n".join(lines) + "\n"


def _budget(study: Study) -> str:
    parts = [f"{study.steps:,} steps"] if study.steps else []
    parts += [f"at most {study.minutes:g} minutes"] if study.minutes else []
    seeds = ", ".join(map(str, study.seeds))
    return f"{' and '.join(parts).capitalize()} each; seeds {seeds}. Mean ± standard deviation over seeds."


def _differences(found: Findings) -> list[str]:
    heads = "| variant | metric | difference | over seeds: 95 % | p | p (Holm) | over samples: 95 % | p | p (Holm) |"
    lines = [
        "Paired: seed by seed (t test), and question by question (bootstrap of the mean over seeds). "
        "p (Holm) is p corrected for the number of variants, metric by metric; below 0.05 it has a star.",
        "",
        heads,
        "| --- | --- | ---: | --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for variant, cells in found.table.items():
        for metric, cell in cells.items():
            if cell.difference is None:
                continue
            shown = [_short(metric, found.study), f"{cell.difference:+.4f}"]
            shown += [*_paired(cell.over_seeds), *_paired(cell.over_samples)]
            lines.append(f"| {variant} | {' | '.join(shown)} |")
    return lines


def _paired(one: Paired | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    star = " *" if one.p_holm < 0.05 else ""
    return f"{one.low:+.4f} to {one.high:+.4f}", f"{one.p:.4f}", f"{one.p_holm:.4f}{star}"


def _mean(cell: Cell | None) -> str:
    if cell is None:
        return ""
    spread = cell.spread
    return f"{spread.mean:.4f}" + ("" if spread.std is None else f" ± {spread.std:.4f}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _short(metric: TableMetric, study: Study) -> str:
    """The name of a metric; without that of the evaluation, where there is only one."""
    return str(metric) if len(study.evaluate) > 1 else f"{metric.benchmark}/{metric.name}"


def to_csv(found: Findings) -> str:
    """The content of table.csv: a row for each variant; what is not there is empty."""
    tests = [f"{test}_{part}" for test in ("seeds", "samples") for part in ("low", "high", "p", "p_holm")]
    parts = ("difference", *tests)
    columns = ["variant", "seeds"]
    for metric in found.study.metrics:
        columns += [f"{metric} {part}" for part in ("mean", "std", *parts)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, *COSTS])
    for variant, cells in found.table.items():
        row: list[Any] = [variant, len(found.seeds(variant))]
        for metric in found.study.metrics:
            cell = cells.get(metric)
            if cell is None:
                row += [None] * (2 + len(parts))
                continue
            row += [cell.spread.mean, cell.spread.std, cell.difference]
            for one in (cell.over_seeds, cell.over_samples):
                row += [None] * 4 if one is None else [one.low, one.high, one.p, one.p_holm]
        cost = found.cost(variant)
        writer.writerow([*row, *(cost[name] for name in COSTS)])
    return file.getvalue()


def to_json(found: Findings) -> dict[str, Any]:
    """The content of results.json."""
    study = asdict(found.study)
    return {
        "study": study | {"metrics": [str(metric) for metric in found.study.metrics]},
        "runs": [asdict(result) for result in found.results],
        "table": {
            variant: {
                "seeds": found.seeds(variant),
                "cost": found.cost(variant),
                "metrics": {str(metric): asdict(cell) for metric, cell in cells.items()},
            }
            for variant, cells in found.table.items()
        },
        "failures": [
            {"variant": variant, "seed": seed, "error": error} for (variant, seed), error in found.failures.items()
        ],
    }
