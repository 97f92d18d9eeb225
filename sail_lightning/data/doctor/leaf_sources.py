"""Leaf sources of a split: the sources inside its mixtures, and the records of each that are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.doctor.faults import Fault
from sail_lightning.data.records import image_hash
from sail_lightning.data.sources.base import Source
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.data.sources.mixture import Mixture
from sail_lightning.errors import SailError, SailUsageError

ENDLESS = 1000
"""Number of records that are read from an endless source."""


@dataclass(frozen=True)
class LeafSource:
    """A source that is not a mixture, and the records of it that are used.

    Attributes:
        split: Split that it belongs to.
        name: Path in the mixtures of the split, such as `referring/refcoco`, or else the name of its class.
        source: The source.
        indices: Indices of the records that are used.
        faults: Faults of the source as a whole; it has no records then.
    """

    split: str
    name: str
    source: Source
    indices: Sequence[int] | NDArray[np.int64]
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def endless(self) -> bool:
        """Whether the source is endless; only its first records are read then."""
        return not self.faults and self.source.length is None

    def record(self, place: int) -> int:
        """Returns the index in the source of the record at a position of `indices`."""
        return int(self.indices[place])

    def image_keys(self) -> NDArray[np.uint64]:
        """Returns the `image_hash` of each record's first image; 0 if there is none or the record is broken."""
        if not len(self) or self.endless:
            return np.zeros(len(self), np.uint64)
        try:
            return self.source.image_keys()[np.asarray(self.indices, np.int64)]
        except SailError:  # raised if a record must be read for its image
            return np.array([_hash_of(self.source, int(index)) for index in self.indices], np.uint64)


def flatten_sources(split: str, source: Source, limit: int | None = None) -> list[LeafSource]:
    """Returns the leaf sources of a split's source; one with unreadable files has a fault instead of records.

    Args:
        split: Name of the split.
        source: A source, or a mixture of sources or of mixtures.
        limit: Number of first records of each that are used; all by default, and `ENDLESS` of an endless source.

    Raises:
        SailUsageError: The settings of a mixture contradict each other.
    """
    return list(_leaves(split, "", source, limit))


def excluded(source: Source) -> Iterator[tuple[str, Source]]:
    """Yields the held-out sets that mixtures name, by name."""
    if isinstance(source, Mixture):
        yield from source.exclude.items()
        for part in source.children.values():
            yield from excluded(part)


def first_file(source: Source) -> str:
    """Returns the name of a source for reports: its annotation file, or else its class."""
    files = source.files if isinstance(source, IndexedSource) else ()
    return str(files[0]) if files else type(source).__name__


def _leaves(
    split: str, name: str, source: Source, limit: int | None, records: NDArray[np.int64] | None = None
) -> Iterator[LeafSource]:
    if isinstance(source, Mixture):
        yield from _parts(split, name, source, limit)
        return
    name = name or type(source).__name__
    try:
        length = source.length
    except SailError as error:
        yield _unreadable(split, name, source, error)
        return
    if records is None:
        records = np.arange((limit or ENDLESS) if length is None else length)
    yield LeafSource(split, name, source, records[:limit])


def _parts(split: str, name: str, mixture: Mixture, limit: int | None) -> Iterator[LeafSource]:
    """Yields a mixture's leaf sources; all records are read if an unreadable file hides which ones it uses."""
    used: dict[str, NDArray[np.int64] | None] = {}
    fault: SailError | None = None
    try:
        used = {part: mixture.records(part) for part in mixture.children}
    except SailUsageError:
        raise
    except SailError as error:
        fault = error
    found: list[LeafSource] = []
    for part, source in mixture.children.items():
        found += _leaves(split, f"{name}/{part}".lstrip("/"), source, limit, used.get(part))
    if fault is not None and not any(leaf.faults for leaf in found):
        found.append(_unreadable(split, name or "Mixture", mixture, fault))
    yield from found


def _unreadable(split: str, name: str, source: Source, error: SailError) -> LeafSource:
    fault = Fault("unreadable_source", first_file(source), "", None, str(error))
    return LeafSource(split, name, source, (), (fault,))


def _hash_of(source: Source, index: int) -> int:
    try:
        image = next(iter(source[index].images), None)
    except SailError:
        return 0
    return image_hash(image) if isinstance(image, str | Path) else 0
