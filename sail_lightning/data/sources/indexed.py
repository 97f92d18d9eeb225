"""A source over annotation files, which are parsed once into an index on disk."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.records import RecordIndex, Row, opened
from sail_lightning.data.samplers import ExhaustiveSampler, RandomSampler, Sampler
from sail_lightning.data.sources.base import Source
from sail_lightning.errors import SailError
from sail_lightning.sample import Sample


def data_path(path: str | Path) -> Path:
    """A path of a data set; a relative one is looked up in `$SAIL_DATA`, if that is set."""
    return Path(os.environ.get("SAIL_DATA", "")) / Path(path).expanduser()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SailError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SailError(f"no annotation file {path}; see docs/data.md for where the files of each set go") from None
    except ValueError as error:  # JSON or UTF-8
        raise SailError(f"{path} is not valid JSON ({error}); copy it again") from None


FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError)
"""What reading a record that is laid out otherwise raises."""


def rows_of(id: str, make: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows that one item of a file makes; of one that cannot be read, a row that says why, told by `sample`."""
    try:
        return list(make())
    except FAULTS as error:
        return [{"id": id, "fault": _reason(error)}]


class IndexedSource(Source):
    """Two steps: `rows` parses the files, once for all runs; `sample` makes a record of a row, each time it is read.

    Making a source costs nothing and reads nothing: files are opened when the first record, or the length, is asked
    for. A subclass sets `version` up when its rows change.

    Args:
        files: the annotation files.
    """

    version: ClassVar[int] = 1

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = tuple(data_path(file) for file in files)

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Plain records, as JSON can hold them, in the order of the files. Faults of a record are left to `sample`."""

    @abstractmethod
    def sample(self, row: Row, sampler: Sampler) -> Sample:
        """A record of a row; what is open is asked of `choose`."""

    def picture(self, row: Row) -> str | None:
        """The picture's path in a row."""
        path: str | None = row.get("image")
        return path

    def settings(self) -> Any:
        """Arguments that decide about the rows, as JSON."""
        return None

    @cached_property
    def index(self) -> RecordIndex:
        """The rows."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return opened(kind, self.files, [self.version, self.settings()], self._parsed, self.picture)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @property
    def length(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return self.draw(index, np.random.default_rng(index))

    def draw(self, index: int, rng: np.random.Generator) -> Sample:
        return self._read(index, RandomSampler(rng))

    def whole(self, index: int) -> Sample:
        return self._read(index, ExhaustiveSampler())

    def pictures(self) -> NDArray[np.uint64]:
        return self.index.image_hashes

    def _read(self, index: int, sampler: Sampler) -> Sample:
        row = self.index[index]
        try:
            if fault := row.get("fault"):
                raise SailError(f"{fault}; mend the record")
            return self.sample(row, sampler)
        except SailError as error:
            raise SailError(f"{self.files[0]} {self._name(row, index)}: {error}") from None
        except FAULTS as error:
            raise SailError(f"{self.files[0]} {self._name(row, index)}: {_reason(error)}; mend the record") from None

    def _parsed(self) -> Iterator[Row]:
        try:
            yield from self.rows()
        except FAULTS as error:
            files = " or ".join(map(str, self.files))
            raise SailError(f"{files} is not laid out as {type(self).__name__} reads it: {_reason(error)}") from None

    def _name(self, row: Row, index: int) -> str:
        return str(row.get("id") or row.get("image") or f"record {index}")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    return f"{type(error).__name__}, {error}"
