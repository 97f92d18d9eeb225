"""A source of annotation files, which are parsed once into an index on disk."""

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
from sail_lightning.settings.renames import RenamedAttribute


def data_path(path: str | Path) -> Path:
    """Returns the path of a data set file or folder; a relative one starts at `$SAIL_DATA`, if that is set."""
    return Path(os.environ.get("SAIL_DATA", "")) / Path(path).expanduser()


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        SailError: The file is missing or is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SailError(f"no annotation file {path}; see docs/data.md for where the files of each set go") from None
    except ValueError as error:  # JSON or UTF-8
        raise SailError(f"{path} is not valid JSON ({error}); copy it again") from None


FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError)
"""Exceptions that reading a record of an unexpected layout raises."""


def rows_of(id: str, make: Callable[[], Iterable[Row]]) -> list[Row]:
    """Returns the rows made from one item of a file; for one that cannot be read, a single row with a `fault`.

    Args:
        id: Name of the item in messages.
        make: Makes the rows; its `FAULTS` are caught.
    """
    try:
        return list(make())
    except FAULTS as error:
        return [{"id": id, "fault": f"{_reason(error)}; fix the record"}]


class IndexedSource(Source):
    """Reads annotation files in two steps, which a subclass writes.

    `rows` parses the files once for all runs, into an index on disk; `sample` makes a sample of a row each time that
    the record is read. Constructing a source opens no file: files are read when the first record or the length is
    needed. A row with the key `fault` is a record that cannot be used: reading it raises that sentence, which says
    what is wrong and how to fix it.

    Args:
        files: Paths of the annotation files; relative ones start at `$SAIL_DATA`.
    """

    version: ClassVar[int] = 2
    """Version of the rows that `rows` makes; raise it when they change, so that old indexes are not used."""

    picture = RenamedAttribute("image_path")

    def __init__(self, files: Sequence[str | Path]) -> None:
        self.files = tuple(data_path(file) for file in files)

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields plain records that JSON can hold, in the order of the files.

        A record with a fault is yielded all the same: with its sentence under the key `fault`, or for `sample` to find.
        """

    @abstractmethod
    def sample(self, row: Row, sampler: Sampler) -> Sample:
        """Returns the sample of a row; open choices are made by `sampler`."""

    def image_path(self, row: Row) -> str | None:
        """Returns the path of a row's image; None if it has none."""
        path: str | None = row.get("image")
        return path

    def settings(self) -> Any:
        """Returns the arguments that the rows depend on, as JSON; other values make another index."""
        return None

    @cached_property
    def index(self) -> RecordIndex:
        """Rows of the files; read from the index on disk, which is made first if it is missing or outdated."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return opened(kind, self.files, [self.version, self.settings()], self._parsed, self.image_path)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @property
    def length(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Sample:
        return self.sample_record(index, np.random.default_rng(index))

    def sample_record(self, index: int, rng: np.random.Generator) -> Sample:
        return self._read(index, RandomSampler(rng))

    def full_record(self, index: int) -> Sample:
        return self._read(index, ExhaustiveSampler())

    def image_keys(self) -> NDArray[np.uint64]:
        return self.index.image_hashes

    def _read(self, index: int, sampler: Sampler) -> Sample:
        row = self.index[index]
        try:
            if fault := row.get("fault"):
                raise SailError(fault)
            return self.sample(row, sampler)
        except SailError as error:
            raise SailError(f"{self.files[0]} {self._name(row, index)}: {error}") from None
        except FAULTS as error:
            raise SailError(f"{self.files[0]} {self._name(row, index)}: {_reason(error)}; fix the record") from None

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
