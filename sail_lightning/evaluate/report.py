"""Writes reports: report.md for people, report.json for programs, per_sample.jsonl with every answer's score."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sail_lightning.evaluate.answer_log import FILE, NUMBER, Line, write_lines
from sail_lightning.evaluate.gallery import ImageFinder, draw_gallery
from sail_lightning.evaluate.published import Published, published
from sail_lightning.evaluate.scoring import Report

MARKDOWN, JSON = "report.md", "report.json"
COUNTED = "questions"
"""Key of `meta` that holds the number of questions of the benchmark; a report of fewer answers says so."""

OWN_METRICS = "own_metrics"
"""Key of `meta` that holds the config of each metric of the user's own, by name, from which it can be built again."""


@dataclass(frozen=True)
class Written:
    """The paths of the files of a report."""

    markdown: Path
    json: Path
    per_sample: Path
    gallery: list[Path] = field(default_factory=list)


def write_report(
    folder: Path,
    reports: Mapping[str, Report],
    meta: Mapping[str, Any],
    image_of: ImageFinder | None = None,
    cases: int = 0,
) -> Written:
    """Writes the files of a report.

    report.json holds `metrics` (`flat_metrics`), `benchmarks: {name: {kind, metrics, intervals, counts}}`, the settings
    of the scoring, and `meta`. It and report.md are there before the gallery is drawn.

    Args:
        folder: Folder of the report, which is made if missing.
        reports: Reports by benchmark.
        meta: What the metrics were measured with, as JSON.
        image_of: Returns the image of an answer, for the gallery.
        cases: Number of best, worst and random answers that the gallery draws; 0 draws none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / FILE, scored_lines(reports.values()))
    (folder / JSON).write_text(json.dumps(to_json(reports, meta), indent=2) + "\n", encoding="utf-8")
    _write_markdown(folder, to_markdown(reports, meta))
    gallery = draw_gallery(folder, reports, image_of or (lambda record: None), cases) if cases else []
    if gallery:
        _write_markdown(folder, to_markdown(reports, meta, gallery))
    return Written(folder / MARKDOWN, folder / JSON, folder / FILE, gallery)


def _write_markdown(folder: Path, text: str) -> None:
    # The name of a file may hold lone surrogates, which UTF-8 cannot encode.
    (folder / MARKDOWN).write_text(text, encoding="utf-8", errors="backslashreplace")


def file_sums(files: Iterable[Path]) -> dict[str, str]:
    """Returns the sha256 of each file, by path."""
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def scored_lines(reports: Iterable[Report]) -> list[Line]:
    """Returns every answer with its `score`, in the order of the records' `number` where all have one."""
    lines = [
        {**record.to_json(), "score": score}
        for report in reports
        for record, score in zip(report.records, report.per_sample, strict=True)
    ]
    # In a file of another program `number` may mean anything.
    numbered = all(type(line.get(NUMBER)) is int for line in lines)
    return sorted(lines, key=lambda line: line[NUMBER]) if numbered else lines


def flat_metrics(reports: Mapping[str, Report]) -> dict[str, float]:
    """Returns the metrics of all reports in one mapping.

    The keys of a single benchmark are plain. Of several, all metrics are keyed `NAME/key`, and those that only one
    benchmark has also by their plain key, so that `perbench_overall` always has its own name.
    """
    if len(reports) == 1:
        return dict(next(iter(reports.values())).metrics)
    held = Counter(key for report in reports.values() for key in report.metrics)
    values = [(name, key, value) for name, report in reports.items() for key, value in report.metrics.items()]
    plain = {key: value for _, key, value in values if held[key] == 1}
    return plain | {f"{name}/{key}": value for name, key, value in values}


def to_json(reports: Mapping[str, Report], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of report.json."""
    content: dict[str, Any] = {"metrics": flat_metrics(reports)}
    content["benchmarks"] = {
        name: {
            "kind": report.kind,
            "metrics": report.metrics,
            "intervals": {key: list(bounds) for key, bounds in report.intervals.items()},
            "counts": report.counts,
        }
        | ({"notes": report.notes} if report.notes else {})
        for name, report in reports.items()
    }
    return content | _settings(reports) | dict(meta)


def to_markdown(reports: Mapping[str, Report], meta: Mapping[str, Any], gallery: Sequence[Path] = ()) -> str:
    """Returns the content of report.md."""
    settings = _settings(reports)
    lines = ["# Report", ""]
    if settings.get("protocol") == "official":
        lines += ["Protocol `official`: as the official code computes its metrics, faults included.", ""]
    answered = sum(report.counts.get("answers", 0) for report in reports.values() if report.records)
    if (asked := meta.get(COUNTED)) is not None and answered < asked:
        lines += [f"**Incomplete: {answered} of {asked} questions were answered.**", ""]
    for name, report in reports.items():
        lines += [f"## {name}", "", *_metrics(report), *_published(name, report)]
    if gallery:
        shown = " ".join(f"![{path.stem}]({path.parent.name}/{path.name})" for path in gallery)
        lines += [
            "## Gallery",
            "",
            "Left the truth, right the answer: best, worst, and drawn by chance.",
            "",
            shown,
            "",
        ]
    rows = {**settings, **meta}
    lines += ["## Measured with", "", "| | |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in _flat(rows).items()]
    return "\n".join(lines) + "\n"


def _metrics(report: Report) -> list[str]:
    """Returns the lines of the metrics with their intervals, and of the counts."""
    lines = ["| metric | value | 95 % interval |", "| --- | ---: | --- |"]
    for key, value in report.metrics.items():
        bounds = report.intervals.get(key)
        lines.append(f"| `{key}` | {value:.4f} | {'' if bounds is None else f'{bounds[0]:.4f} to {bounds[1]:.4f}'} |")
    counted = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in report.counts.items())
    notes = [f"No interval of `{key}`: {note}." for key, note in report.notes.items()]
    return [*lines, "", f"Counted: {counted}.", "", *(line for note in notes for line in (note, ""))]


def _published(name: str, report: Report) -> list[str]:
    """Returns the lines of the table in which the paper's rows follow the user's own."""
    rows = published(name)
    if not rows:
        return []
    metrics = list(dict.fromkeys(row.metric for row in rows))
    found: dict[tuple[str, str, str], dict[str, Published]] = {}
    for row in rows:
        found.setdefault((row.model, row.size, row.source), {})[row.metric] = row
    own = [f"{report.metrics[key]:.4f}" if key in report.metrics else "-" for key in metrics]
    lines = [f"| model | size | {' | '.join(f'`{key}`' for key in metrics)} | source |"]
    lines += [f"| --- | --- | {' | '.join('---:' for _ in metrics)} | --- |"]
    lines += [f"| **this run** | | {' | '.join(own)} | measured |"]
    for (model, size, source), values in found.items():
        printed = [f"{values[key].value:.3f}" if key in values else "-" for key in metrics]
        lines.append(f"| {model} | {size} | {' | '.join(printed)} | published: {source} |")
    return ["Published values; none was measured here:", "", *lines, ""]


def _settings(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Returns the settings of the scoring, which are the same for all benchmarks."""
    return dict(next(iter(reports.values())).settings) if reports else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key} ")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _cell(value: Any) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")
