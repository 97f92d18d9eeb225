"""Prints what docs/ablations.md says beside the tables of a study, of the folder that `sail-lightning ablate` wrote.

    python docs/measure_studies.py FOLDER [COLUMN]

For each variant: records a step, the mean over seeds of a validation metric (val/ciou) by step, and that of each seed.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from statistics import fmean

import yaml


def rows_of(run: Path) -> list[dict[str, str]]:
    """The lines of a run's metrics.csv, of its last training."""
    with max(run.glob("fit/version_*/metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def main(folder: Path, column: str = "val/ciou") -> None:
    for variant in sorted(path for path in folder.iterdir() if path.is_dir()):
        runs = sorted(variant.glob("seed_*"))
        curves: list[dict[int, float]] = []
        records: list[float] = []
        for run in runs:
            rows = rows_of(run)
            budget = yaml.safe_load((run / "config.yaml").read_text())["data"]["token_budget"]
            curves.append({int(row["step"]) + 1: float(row[column]) for row in rows if row.get(column)})
            records += [
                budget
                * float(row["train/packing_efficiency"])
                * float(row["train/samples_per_s"])
                / float(row["train/tokens_per_s"])
                for row in rows
                if row.get("train/packing_efficiency")
            ]
        print(f"{variant.name}: {fmean(records):.1f} records a step")
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        print("  mean  " + "  ".join(f"{step}: {fmean(curve[step] for curve in curves):.2f}" for step in steps))
        for run, curve in zip(runs, curves, strict=True):
            print(f"  {run.name}  " + "  ".join(f"{curve[step]:.2f}" for step in steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
