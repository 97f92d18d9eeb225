"""Report of a check: Markdown for people, JSON for programs, a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.data.doctor.faults import KINDS, Fault

FORMAT = 2
COLUMNS = ("records", "images", "turns", "masks", "prompts")
EXAMPLES = 3
"""Number of faults of each kind and source in the terminal, and as examples in the JSON."""
SHOWN = 20
"""Number of faults of each kind and source in the Markdown."""


@dataclass(frozen=True)
class LeafReport:
    """Report of one source: its counts by `COLUMNS`, and its faults."""

    split: str
    name: str
    kind: str
    counts: dict[str, int]
    faults: tuple[Fault, ...]

    def by_kind(self) -> dict[str, list[Fault]]:
        """Returns the faults by kind, in the order of `KINDS`; kinds without faults are left out."""
        found = {kind: [fault for fault in self.faults if fault.kind == kind] for kind in KINDS}
        return {kind: faults for kind, faults in found.items() if faults}


@dataclass(frozen=True)
class Report:
    """Report of all sources; `max_tokens` is the limit of lengths in tokens, None if they were not checked."""

    leaves: tuple[LeafReport, ...]
    max_tokens: int | None = None

    @property
    def faults(self) -> int:
        """Number of faults."""
        return sum(len(leaf.faults) for leaf in self.leaves)

    def write(self, folder: Path, command: str) -> list[Path]:
        """Writes report.md and report.json to a folder and returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "report.md", folder / "report.json"]
        written[0].write_text(self.to_markdown(command), encoding="utf-8")
        content = {"command": command, **self.to_dict()}
        written[1].write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return written

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON: each source, each kind of fault, each record."""
        return {
            "format": FORMAT,
            "faults": self.faults,
            "max_tokens": self.max_tokens,
            "sources": [
                {
                    "split": leaf.split,
                    "name": leaf.name,
                    "class": leaf.kind,
                    "counts": leaf.counts,
                    "faults": {
                        kind: {
                            "count": len(faults),
                            "fix": KINDS[kind],
                            "examples": [_sentence(fault) for fault in faults[:EXAMPLES]],
                            "records": [_record(fault) for fault in faults],
                        }
                        for kind, faults in leaf.by_kind().items()
                    },
                }
                for leaf in self.leaves
            ],
        }

    def to_markdown(self, command: str) -> str:
        """Returns a table of the sources, then each fault with file, record and fix, as Markdown."""
        lines = ["# Data check", "", f"`{command}`", "", self._verdict(), ""]
        head, *rows = self._rows()
        lines += [_row(head), _row(["---", "---", *["---:"] * (len(head) - 2)]), *map(_row, rows)]
        for leaf in self.leaves:
            for kind, faults in leaf.by_kind().items():
                lines += [
                    "",
                    f"## {leaf.split}, {leaf.name}: {kind} ({len(faults):,})",
                    "",
                    f"Fix: {KINDS[kind]}.",
                    "",
                ]
                lines += [_row(["file", "record", "what is wrong"]), _row(["---"] * 3)]
                lines += [_row([fault.file, fault.record, fault.message]) for fault in faults[:SHOWN]]
                if len(faults) > SHOWN:
                    lines += ["", f"{len(faults) - SHOWN:,} more are in report.json."]
        return "\n".join(lines) + "\n"

    def to_text(self) -> str:
        """Returns the table and the first faults of each kind and source, as plain text."""
        lines = columns(self._rows())
        for leaf in self.leaves:
            for kind, faults in leaf.by_kind().items():
                lines += ["", f"{leaf.split} {leaf.name}: {len(faults):,} {kind}; {KINDS[kind]}"]
                lines += [f"  {_sentence(fault)}" for fault in faults[:EXAMPLES]]
                if len(faults) > EXAMPLES:
                    lines.append(f"  and {len(faults) - EXAMPLES:,} more")
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        found = {0: "No fault.", 1: "1 fault."}.get(self.faults, f"{self.faults:,} faults.")
        if self.max_tokens is None:
            return f"{found} Lengths were not checked: the config has no model."
        return f"{found} Samples may have {self.max_tokens:,} tokens."

    def _rows(self) -> list[list[str]]:
        rows = [["split", "source", *COLUMNS, "faults"]]
        for leaf in self.leaves:
            counts = [f"{leaf.counts[name]:,}" for name in COLUMNS]
            rows.append([leaf.split, leaf.name, *counts, f"{len(leaf.faults):,}"])
        return rows


def columns(rows: Sequence[Sequence[str]], texts: int = 2) -> list[str]:
    """Returns table rows as lines; the first `texts` columns are aligned left, numbers right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _sentence(fault: Fault) -> str:
    return f"{' '.join(part for part in (fault.file, fault.record) if part)}: {fault.message}"


def _record(fault: Fault) -> dict[str, Any]:
    return {name: value for name, value in fault.to_dict().items() if name != "kind"}


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|").replace("<", "\\<") for cell in cells)
    return f"| {' | '.join(escaped)} |"
