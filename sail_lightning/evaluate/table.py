"""Writes metrics as a table: Markdown for reports, CSV for programs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path


def _columns(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the keys of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def markdown_table(rows: Mapping[str, Mapping[str, float]], digits: int = 4, corner: str = "") -> str:
    """Returns a Markdown table with a line per row name (model or split) and a column per metric key, without a final
    line end.

    Floats have `digits` decimals, whole numbers none; a value that is NaN or absent is a dash. `corner` is the heading
    of the column of names.
    """
    columns = _columns(rows)
    lines = [[corner, *columns], ["---", *("---:" for _ in columns)]]
    lines += [[name, *(_cell(row.get(key), digits) for key in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def write_csv(rows: Mapping[str, Mapping[str, float]], path: str | Path, corner: str = "name") -> None:
    """Writes a table as CSV (UTF-8) in full precision; an absent value is an empty field, and the folder is made if
    missing."""
    columns = _columns(rows)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([corner, *columns])
        writer.writerows([name, *(row.get(key, "") for key in columns)] for name, row in rows.items())
