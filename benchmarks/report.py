"""Results of the bench as JSON, Markdown and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sail_lightning.benchmarks.cases import BASELINE, CASES, OURS
from sail_lightning.benchmarks.measure import Timing
from sail_lightning.benchmarks.throughput import Throughput


@dataclass(frozen=True)
class Result:
    """Result of one case: seconds and peak MiB by variant, and the largest relative difference of the results."""

    case: str
    timings: dict[str, Timing]
    memory: dict[str, float | None]
    difference: float
    tokens: int

    @property
    def speedup(self) -> float:
        """The ratio of the baseline's median time to ours."""
        return self.timings[BASELINE].median / self.timings[OURS].median

    @property
    def memory_ratio(self) -> float | None:
        """The ratio of our peak memory to the baseline's."""
        ours, baseline = self.memory.get(OURS), self.memory.get(BASELINE)
        return ours / baseline if ours is not None and baseline else None


@dataclass(frozen=True)
class Report:
    """One run of the bench."""

    command: str
    environment: dict[str, str]
    settings: dict[str, Any]
    results: Sequence[Result] = ()
    throughput: Sequence[Throughput] = ()
    profile: dict[str, float] | None = None
    data_path: dict[str, float] | None = None
    record_index: dict[str, float] | None = None

    def write(self, folder: Path) -> list[Path]:
        """Writes bench.json, bench.md and, where variants were compared, bench.png; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "bench.json", folder / "bench.md"]
        written[0].write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        if self.results:
            written.append(folder / "bench.png")
            self.draw(written[-1])
        written[1].write_text(self.to_markdown(), encoding="utf-8")
        return written

    def to_dict(self) -> dict[str, Any]:
        """Returns all values, with every repetition, as JSON."""
        return {
            "command": self.command,
            "date": date.today().isoformat(),
            "environment": self.environment,
            "settings": self.settings,
            "cases": [
                {
                    "case": result.case,
                    "title": CASES[result.case].title,
                    "seconds": {name: timing.seconds for name, timing in result.timings.items()},
                    "peak_mib": result.memory,
                    "speedup": result.speedup,
                    "memory_ratio": result.memory_ratio,
                    "difference": result.difference,
                    "tokens": result.tokens,
                }
                for result in self.results
            ],
            "throughput": [item.to_dict() for item in self.throughput],
            "profile": self.profile,
            "data_path": self.data_path,
            "record_index": self.record_index,
        }

    def to_markdown(self) -> str:
        """Returns the tables as Markdown."""
        lines = ["# Bench", "", f"`{self.command}`, {date.today().isoformat()}", ""]
        lines += ["; ".join(f"{key} {value}" for key, value in self.environment.items()), ""]
        if self.results:
            lines += [
                f"Baseline: {BASELINE} (`benchmarks/official_style.py`), the same weights, in one run, alternated. "
                "Seconds are medians (fastest to slowest). Memory is the peak beyond the idle process, in MiB, in a "
                "fresh process each. The difference is the largest relative one (2-norm) of losses and gradients; of "
                "answers, that of mask logits, relative to how much they vary (1 if any word differs).",
                "",
                "| case | baseline, s | ours, s | faster | baseline, MiB | ours, MiB | memory | difference |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [_row(result) for result in self.results]
            lines += ["", "![speed and memory](bench.png)", ""]
        if self.throughput:
            lines += [*_throughput_table(self.throughput), ""]
        tables = {"profile": self.profile, "data path": self.data_path, "record index": self.record_index}
        for title, figures in tables.items():
            if figures:
                lines += [f"| {title} | |", "| --- | --- |"]
                lines += [f"| {name} | {value:.4g} |" for name, value in figures.items()]
                lines.append("")
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Draws speed-up and memory ratio of each case as bars."""
        titles = [CASES[result.case].title for result in self.results]
        figure = Figure(figsize=(10, 0.5 * len(titles) + 1.6), layout="constrained")
        speed, memory = figure.subplots(1, 2, sharey=True)
        rows = range(len(titles))
        speed.barh(rows, [result.speedup for result in self.results], color="#4878a8")
        speed.set(xlabel="times faster than the baseline", yticks=rows, yticklabels=titles)
        memory.barh(rows, [result.memory_ratio or 0 for result in self.results], color="#a86848")
        memory.set(xlabel="peak memory, as a share of the baseline's")
        for axes, values in (
            (speed, [f"{result.speedup:.1f}" for result in self.results]),
            (memory, ["" if result.memory_ratio is None else f"{result.memory_ratio:.2f}" for result in self.results]),
        ):
            axes.invert_yaxis() if axes is speed else None
            axes.axvline(1, color="black", linewidth=0.8)
            axes.bar_label(axes.containers[0], values, padding=3)
            axes.margins(x=0.15)
            axes.spines[["top", "right"]].set_visible(False)
        FigureCanvasAgg(figure).print_figure(path, dpi=120)


def _row(result: Result) -> str:
    cells = [CASES[result.case].title]
    for name in (BASELINE, OURS):
        timing = result.timings[name]
        cells.append(f"{timing.median:.3g} ({timing.spread[0]:.3g} to {timing.spread[1]:.3g})")
    cells.append(f"**{result.speedup:.2f}x**")
    cells += [_mib(result.memory.get(name)) for name in (BASELINE, OURS)]
    ratio = result.memory_ratio
    cells.append("—" if ratio is None else f"**{ratio:.2f}**")
    cells.append(f"{result.difference:.1e}")
    return f"| {' | '.join(cells)} |"


def _throughput_table(items: Sequence[Throughput]) -> list[str]:
    """Memory and shares of what the device can do have columns where they are known: on CUDA."""
    peaks = items[0].peaks
    columns = ["model", "tokens", "step, s", "tokens/s", "TFLOP/s", *(f"of {peak:g}" for peak in peaks.values())]
    with_memory = items[0].peak_mib is not None
    columns += ["peak, MiB"] * with_memory
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for item in items:
        cells = [item.name, str(item.tokens), f"{item.seconds:.4g}", f"{item.tokens_per_second:,.0f}"]
        cells += [f"{item.teraflops:.4g}", *(f"{share:.1%}" for share in item.shares.values())]
        lines.append(f"| {' | '.join(cells + [_mib(item.peak_mib)] * with_memory)} |")
    note = "FLOPs are those of the exact mask and of supervised logits, recomputation not counted"
    if peaks:
        note += "; shares are of {:g} (a measured matrix product) and {:g} TFLOP/s (the data sheet)".format(
            *peaks.values()
        )
    if with_memory:
        note += "; the peak is that of all tensors, weights and gradients included"
    return [*lines, "", f"{note}."]


def _mib(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"
