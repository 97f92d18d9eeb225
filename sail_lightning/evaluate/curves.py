"""The learning curve of a run, drawn from the table that Lightning's CSVLogger writes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sail_lightning.errors import SailError

LOSSES = ("train/loss", "train/language", "train/mask", "train/dice")
METRICS = (
    "val/ciou",
    "val/giou",
    "val/n_acc",
    "val/t_acc",
    "val/mcq_accuracy",
    "val/exact_match",
)
Curve = tuple[list[float], list[float]]


def draw_learning_curve(metrics_csv: Path, out: Path, columns: Sequence[str] | None = None) -> Path:
    """Draws training losses (left) and validation metrics (right) against the step.

    Args:
        metrics_csv: The `metrics.csv` of a run; cells that are empty or not finite are left out.
        out: Image file to write, in the format that its suffix names; its folder is made if missing.
        columns: Columns to draw, those that begin with `train/` on the left; None for the parts of the loss and the
            metrics that a run usually has (`LOSSES`, `METRICS`). Columns without a value are skipped.

    Returns:
        The path `out`.

    Raises:
        SailError: The file does not exist, lacks a column, or holds nothing to draw.
    """
    curves = read_curves(metrics_csv)
    if columns is None:
        columns = [name for name in (*LOSSES, *METRICS) if name in curves]
    elif unknown := [name for name in columns if name not in curves]:
        raise SailError(f"{metrics_csv} has no column {unknown[0]}; it has {', '.join(curves)}")
    chosen = {name: curves[name] for name in columns if curves[name][0]}
    if not chosen:
        raise SailError(f"{metrics_csv} has nothing to draw; it has {', '.join(curves) or 'no column'}")
    losses = {name: curve for name, curve in chosen.items() if name.startswith("train/")}
    metrics = {name: curve for name, curve in chosen.items() if name not in losses}
    panels = [(label, part) for label, part in (("training loss", losses), ("validation", metrics)) if part]

    def drawn(part: dict[str, Curve], axes: Axes) -> None:
        for name, curve in part.items():
            _draw(axes, name.partition("/")[2] or name, curve, smooth=part is losses)

    return draw_panels({label: partial(drawn, part) for label, part in panels}, out)


def draw_panels(panels: Mapping[str, Callable[[Axes], None]], out: Path) -> Path:
    """Draws panels over the step side by side, each by a function of its axes.

    Args:
        panels: For each label of a vertical axis, the function that draws its labelled lines.
        out: Image file to write, in the format that its suffix names; its folder is made if missing.

    Returns:
        The path `out`.
    """
    figure = Figure(figsize=(5.4 * len(panels), 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, (label, draw) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        draw(axes)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def read_curves(metrics_csv: Path) -> dict[str, Curve]:
    """Reads the steps and finite values of every column of a metrics.csv but `step` and `epoch`, in order of steps.

    Raises:
        SailError: The file does not exist, or has no `step` column.
    """
    try:
        with metrics_csv.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            names = list(table.fieldnames or ())
            rows = list(table)
    except FileNotFoundError:
        raise SailError(
            f"no file {metrics_csv}; train with CSVLogger, whose metrics.csv lies in the run's folder"
        ) from None
    if "step" not in names:
        raise SailError(f"{metrics_csv} is not a metrics.csv of CSVLogger: it has no column step")
    curves: dict[str, Curve] = {name: ([], []) for name in names if name not in ("step", "epoch")}
    for row in sorted(rows, key=lambda row: float(row["step"])):
        for name, (steps, values) in curves.items():
            if row[name] and np.isfinite(float(row[name])):
                steps.append(float(row["step"]))
                values.append(float(row[name]))
    return curves


def _draw(axes: Axes, label: str, curve: Curve, smooth: bool) -> None:
    """Draws one line; a noisy one of many points is drawn faint, with its moving average over a thirtieth of the
    run."""
    steps, values = curve
    width = len(values) // 30
    if not smooth or width < 2:
        axes.plot(steps, values, label=label, linewidth=1.4, marker="o" if len(values) < 30 else None, markersize=3)
        return
    (faint,) = axes.plot(steps, values, linewidth=0.7, alpha=0.25)
    kernel = np.ones(width) / width
    axes.plot(
        steps[width - 1 :], np.convolve(values, kernel, "valid"), label=label, linewidth=1.6, color=faint.get_color()
    )
