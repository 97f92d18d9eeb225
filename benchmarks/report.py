"""Results of the bench as JSON, Markdown and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """Of one case: seconds and peak MiB by variant, and the largest relative difference of what they gave."""

    case: str
    timings: dict[str, Timing]
    memory: dict[str, float | None]
    difference: float
    tokens: int

    @property
    def speedup(self) -> float:
        """The baseline's median seconds over ours."""
        return self.timings[BASELINE].median / self.timings[OURS].median

    @property
    def memory_ratio(self) -> float | None:
        """Our peak memory over the baseline's."""
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
    data_path: dict[str, float] | None = None

    def write(self, folder: Path) -> list[Path]:
        """bench.json, bench.md and, where something was compared, bench.png; returns what was written."""
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "bench.json", folder / "bench.md"]
        written[0].write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        if self.results:
            written.append(folder / "bench.png")
            self.draw(written[-1])
        written[1].write_text(self.to_markdown(), encoding="utf-8")
        return written

    def to_dict(self) -> dict[str, Any]:
        """All figures, every repetition."""
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
            "throughput": [asdict(item) for item in self.throughput],
            "data_path": self.data_path,
        }

    def to_markdown(self) -> str:
        """Tables for people."""
        lines = ["# Bench", "", f"`{self.command}`, {date.today().isoformat()}", ""]
        lines += ["; ".join(f"{key} {value}" for key, value in self.environment.items()), ""]
        if self.results:
            lines += [
                f"Baseline: {BASELINE} (`benchmarks/official_style.py`), the same weights, in one run, alternated. "
                "Seconds are medians (fastest to slowest). Memory is the peak beyond the idle process, in MiB, in a "
                "fresh process each. The difference is the largest relative one (2-norm) of losses and gradients; of "
                "answers, the share of mask pixels that differ (1 if any word does).",
                "",
                "| case | baseline, s | ours, s | faster | baseline, MiB | ours, MiB | memory | difference |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [_row(result) for result in self.results]
            lines += ["", "![speed and memory](bench.png)", ""]
        if self.throughput:
            lines += [
                "| model | tokens | step, s | tokens/s | TFLOP/s | of 790 | of 989 | peak, MiB |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [
                f"| {item.name} | {item.tokens} | {item.seconds:.4g} | {item.tokens_per_second:,.0f} | "
                f"{item.teraflops:.4g} | {item.teraflops / 790:.1%} | {item.teraflops / 989:.1%} | "
                f"{_mib(item.peak_mib)} |"
                for item in self.throughput
            ]
            lines += [
                "",
                "FLOPs are those of the exact mask and of supervised logits, recomputation not counted; shares are of "
                "790 (a measured matrix product) and 989 TFLOP/s (the data sheet) of an H100 or H200 in bfloat16.",
                "",
            ]
        if self.data_path:
            lines += ["| data path | |", "| --- | --- |"]
            lines += [f"| {name} | {value:.4g} |" for name, value in self.data_path.items()]
            lines.append("")
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """Speed-up and memory ratio of each case as bars."""
        titles = [CASES[result.case].title for result in self.results]
        figure = Figure(figsize=(10, 0.5 * len(titles) + 1.6), layout="constrained")
        speed, memory = figure.subplots(1, 2, sharey=True)
        places = range(len(titles))
        speed.barh(places, [result.speedup for result in self.results], color="#4878a8")
        speed.set(xlabel="times faster than the baseline", yticks=places, yticklabels=titles)
        memory.barh(places, [result.memory_ratio or 0 for result in self.results], color="#a86848")
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


def _mib(value: float | None) -> str:
    return "—" if value is None else f"{value:,.0f}"
