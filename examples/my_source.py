"""A data source in one file: a CSV table with the columns image, mask and phrase."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from typing import Any

from sail_lightning.data.sources import IndexedSource
from sail_lightning.data.sources.indexed import rows_of
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn


@register
class MySource(IndexedSource):
    """Asks about the phrase of each line of a table.

    Args:
        table: CSV file; images and PNG masks are paths that start at its folder.
    """

    def __init__(self, table: str) -> None:
        super().__init__([table])

    def rows(self) -> Iterator[dict[str, Any]]:
        """Parses the table, once for all runs; a line that cannot be read becomes a row with its fault."""
        with self.files[0].open(newline="", encoding="utf-8") as file:
            for number, line in enumerate(csv.DictReader(file), 2):
                yield from rows_of(f"line {number}", partial(self._row, f"line {number}", line))

    def _row(self, id: str, line: dict[str, str]) -> list[dict[str, Any]]:
        folder = self.files[0].parent
        if not line["phrase"]:
            return [{"id": id, "fault": "it has no phrase; write one into the column phrase, or remove the line"}]
        paths = {key: str(folder / line[key]) for key in ("image", "mask")}
        return [{"id": id, "phrase": line["phrase"], **paths}]

    def sample(self, row: dict[str, Any], sampler: object) -> Sample:
        """Makes the sample of a row each time that it is read; no pixel is decoded here."""
        turn = Turn(f"Please segment {row['phrase']}.", "It is [SEG].", "refer", targets=(0,))
        return Sample(row["image"], (turn,), (row["mask"],), source=str(self.files[0]), id=row["id"])
