"""A data source of Parquet files in the package's own format."""

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

COLUMNS = ("id", "image", "size", "turns", "masks", "prompts", "meta")


@register
class ParquetSource(OwnFormatSource):
    """Reads a Parquet file with the keys that `sail_lightning.data.jsonl` describes as columns; others are not read.

    A column may hold nested values or their JSON text. In nested values null means absent, so that masks, which have
    different keys, fit into one type. Needs pyarrow: `pip install 'sail-lightning[parquet]'`.
    """

    def rows(self) -> Iterator[Row]:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise SailError(f"reading {self.files[0]} needs pyarrow: pip install 'sail-lightning[parquet]'") from None
        try:
            with parquet.ParquetFile(self.files[0]) as file:
                columns = [name for name in COLUMNS if name in file.schema_arrow.names]
                number = 0
                for batch in file.iter_batches(columns=columns):
                    for record in batch.to_pylist():
                        number += 1
                        yield {"row": number, "record": {key: _read(value) for key, value in record.items()}}
        except (ArrowException, OSError) as error:
            raise SailError(f"{self.files[0]} is not a readable Parquet file ({error}); write it again") from None

    def image_path(self, row: Row) -> str | None:
        image = row["record"].get("image")
        if isinstance(image, list) and image:
            image = image[0]
        return str(self.root / image) if isinstance(image, str) else None

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        return from_json(row["record"], self.root, str(self.files[0]))

    def _name(self, row: Row, index: int) -> str:
        return f"row {row['row']}"


def _read(value: Any) -> Any:
    """Returns a column's value, decoded if it, or an item of its list, is JSON text. Nested texts stay as they are."""
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, list):
        return [_from_text(item) if isinstance(item, str) else _dense(item) for item in value]
    return _dense(value)


def _from_text(text: str) -> Any:
    """Returns the object or list of a JSON text; any other text, such as a file name, is returned as it is."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _dense(value: Any) -> Any:
    """Returns a nested value without its nulls."""
    if isinstance(value, dict):
        return {key: _dense(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_dense(item) for item in value]
    return value
