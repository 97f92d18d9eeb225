"""A data source of JSONL files in the package's own format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sail_lightning.data.jsonl import from_json
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.own_format import OwnFormatSource
from sail_lightning.errors import SailError
from sail_lightning.registry import register
from sail_lightning.sample import Sample


@register
class JsonlSource(OwnFormatSource):
    """Reads a file with one JSON object per line, as `sail_lightning.data.jsonl` describes it. Empty lines are skipped.

    The index holds the position of each line; the line itself is read and checked when its record is read.
    """

    def image_path(self, row: Row) -> str | None:
        image = row["image"]
        return None if image is None else str(self.root / image)

    def rows(self) -> Iterator[Row]:
        start = 0
        with self.files[0].open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield {"line": number, "at": [start, len(line)], "image": _first_image(line)}
                start += len(line)

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        start, size = row["at"]
        with self.files[0].open("rb") as file:
            file.seek(start)
            line = file.read(size)
        try:
            record = json.loads(line)
        except ValueError as error:  # JSON or UTF-8
            raise SailError(f"not valid JSON ({error}); fix the line") from None
        return from_json(record, self.root, str(self.files[0]))

    def _name(self, row: Row, index: int) -> str:
        return f"line {row['line']}"


def _first_image(line: bytes) -> str | None:
    """Returns the first image that a line names; None if there is none, or the line is broken and its record fails."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        return None
    image = record.get("image") if isinstance(record, dict) else None
    if isinstance(image, list) and image:
        image = image[0]
    return image if isinstance(image, str) else None
