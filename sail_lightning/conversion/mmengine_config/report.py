"""Formats the report on an imported config as text; equal lines about several data sets become one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from sail_lightning.conversion.mmengine_config.ledger import Entry, Fate

_POSITIONS = re.compile(r"\[([\d, ]+)\]")


def text(source: Path, entries: Sequence[Entry], notes: Sequence[str]) -> str:
    """Returns the report: all entries by the fate of their keys, then the notes."""
    lines = [f"Report on {source}"]
    for fate in Fate:
        group = [entry for entry in entries if entry.fate is fate]
        if group:
            lines += ["", f"{fate.value} ({sum(map(_keys, group))}):"]
            lines += [f"  {line}" for line in (_names(group) if fate is Fate.NAME else _keyed(group))]
    return "\n".join([*lines, "", "Before training:", *(f"  - {note}" for note in notes)]) + "\n"


def _keys(entry: Entry) -> int:
    """Returns how many keys an entry stands for: one for each of the equal data sets."""
    found = _POSITIONS.search(entry.key)
    return found[1].count(",") + 1 if found else 1


def _keyed(entries: Iterable[Entry]) -> list[str]:
    """Returns one line per key, and one line for a key with the same value and fate at several positions of a list."""
    merged: dict[tuple[str, str, str], list[int]] = {}
    arrow = ": "
    for entry in entries:
        arrow = " -> " if entry.fate is Fate.CARRIED else ": "
        found = _POSITIONS.search(entry.key)
        positions = [int(number) for number in found[1].split(",")] if found else []
        merged.setdefault((_POSITIONS.sub("[]", entry.key, 1), entry.value, entry.note), []).extend(positions)
    return [
        f"{key.replace('[]', f'[{_ranges(positions)}]', 1) if positions else key} = {value}{arrow}{note}"
        for (key, value, note), positions in merged.items()
    ]


def _names(entries: Iterable[Entry]) -> list[str]:
    """Returns the lines on names: one line per place for those whose values are reported elsewhere, and a line of its
    own, with the value, for each other."""
    elsewhere: dict[str, list[str]] = {}
    alone = []
    for entry in entries:
        if entry.note.startswith("part of "):
            elsewhere.setdefault(entry.note, []).append(entry.key)
        else:
            alone.append(f"{entry.key} = {entry.value}: {entry.note}")
    return [*(f"{', '.join(names)}: {note}" for note, names in elsewhere.items()), *alone]


def _ranges(numbers: Iterable[int]) -> str:
    """Returns numbers in order as text, neighbours as a range: `0-3, 7`."""
    ordered = sorted(set(numbers))
    starts = [ordered[0], *(number for before, number in pairwise(ordered) if number != before + 1)]
    ends = [*(before for before, number in pairwise(ordered) if number != before + 1), ordered[-1]]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))
