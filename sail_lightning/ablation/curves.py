"""The learning curves of a study: a line per variant, the mean over seeds, with a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sail_lightning.evaluate.curves import Curve, draw_panels, read_curves

SMOOTH = 20
"""A curve with more than 2 * SMOOTH points is drawn as a moving average over a SMOOTH-th of them."""


def draw_curves(tables: Mapping[str, Sequence[Path]], columns: Sequence[str], out: Path) -> Path | None:
    """Draws the columns side by side.

    Args:
        tables: For each variant, the metrics.csv of each of its runs; files that are missing are skipped.
        columns: Columns of metrics.csv; those that no run has are left out.
        out: Image file to write.

    Returns:
        `out`, or None where there is nothing to draw.
    """
    read = {variant: [read_curves(path) for path in paths if path.is_file()] for variant, paths in tables.items()}
    panels: dict[str, dict[str, list[Curve]]] = {}
    for column in columns:
        found = {variant: [run[column] for run in runs if column in run] for variant, runs in read.items()}
        drawn = {variant: [curve for curve in curves if curve[0]] for variant, curves in found.items()}
        if any(drawn.values()):
            panels[column] = {variant: curves for variant, curves in drawn.items() if curves}
    if not panels:
        return None
    colours = {variant: f"C{index % 10}" for index, variant in enumerate(tables)}

    def panel(variants: dict[str, list[Curve]], axes: Axes) -> None:
        for variant, runs in variants.items():
            _draw(axes, variant, runs, colours[variant])

    return draw_panels({column: partial(panel, variants) for column, variants in panels.items()}, out)


def _draw(axes: Axes, variant: str, runs: Sequence[Curve], colour: str) -> None:
    steps, values = together(runs)
    if len(steps) > 2 * SMOOTH:
        width = len(steps) // SMOOTH
        kernel = np.ones(width) / width
        values = np.stack([np.convolve(row, kernel, "valid") for row in values])
        steps = steps[width - 1 :]
    mean = values.mean(0)
    axes.plot(steps, mean, label=variant, color=colour, linewidth=1.4, marker="o" if len(steps) < 30 else None, ms=3)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)


def together(runs: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The steps (n,) that all runs have, and each run's values there, (runs, n)."""
    tables = [dict(zip(*run, strict=True)) for run in runs]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return np.asarray(shared, np.float64), np.array([[table[step] for step in shared] for table in tables], np.float64)
