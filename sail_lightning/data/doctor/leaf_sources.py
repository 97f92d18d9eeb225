"""What a check reads: the sources that are no mixtures, and which of their records are used."""

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
"""Records that are read of a source without an end."""


@dataclass(frozen=True)
class Leaf:
    """A source that is no mixture, and the numbers of its records that are used.

    `name` is its place in the mixtures of the split, such as `referring/refcoco`, or else its class. `faults` are those
    of the source as a whole: then there are no records.
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
        """Whether the source has no end; then only its first records are read."""
        return not self.faults and self.source.length is None

    def record(self, place: int) -> int:
        """The number in the source of the record at a place."""
        return int(self.indices[place])

    def pictures(self) -> NDArray[np.uint64]:
        """`image_hash` of each record's first picture; 0 where there is none, or no name, or the record is broken."""
        if not len(self) or self.endless:
            return np.zeros(len(self), np.uint64)
        try:
            return self.source.pictures()[np.asarray(self.indices, np.int64)]
        except SailError:  # of a source that has to read its records for that
            return np.array([_hash_of(self.source, int(index)) for index in self.indices], np.uint64)


def leaves(split: str, source: Source, limit: int | None = None) -> list[Leaf]:
    """The leaves of a split's source, part by part; a source whose files cannot be read is one with a fault.

    Args:
        split: whose source it is.
        source: perhaps a mixture, perhaps of mixtures.
        limit: first records of each that are used; all by default, and `ENDLESS` of a source without an end.

    Raises:
        SailUsageError: a mixture whose settings contradict each other.
    """
    return list(_leaves(split, "", source, limit))


def excluded(source: Source) -> Iterator[tuple[str, Source]]:
    """The held-out sets that mixtures name, by name."""
    if isinstance(source, Mixture):
        yield from source.exclude.items()
        for part in source.parts.values():
            yield from excluded(part)


def first_file(source: Source) -> str:
    """What names a source in a fault: its annotation file, or else its class."""
    files = source.files if isinstance(source, IndexedSource) else ()
    return str(files[0]) if files else type(source).__name__


def _leaves(
    split: str, name: str, source: Source, limit: int | None, records: NDArray[np.int64] | None = None
) -> Iterator[Leaf]:
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
    yield Leaf(split, name, source, records[:limit])


def _parts(split: str, name: str, mixture: Mixture, limit: int | None) -> Iterator[Leaf]:
    """A mixture's leaves. It cannot say which records it uses if one of its files is unreadable: then all are read."""
    used: dict[str, NDArray[np.int64] | None] = {}
    fault: SailError | None = None
    try:
        used = {part: mixture.records(part) for part in mixture.parts}
    except SailUsageError:
        raise
    except SailError as error:
        fault = error
    found: list[Leaf] = []
    for part, source in mixture.parts.items():
        found += _leaves(split, f"{name}/{part}".lstrip("/"), source, limit, used.get(part))
    if fault is not None and not any(leaf.faults for leaf in found):
        found.append(_unreadable(split, name or "Mixture", mixture, fault))
    yield from found


def _unreadable(split: str, name: str, source: Source, error: SailError) -> Leaf:
    fault = Fault("unreadable_source", first_file(source), "", None, str(error))
    return Leaf(split, name, source, (), (fault,))


def _hash_of(source: Source, index: int) -> int:
    try:
        image = next(iter(source[index].images), None)
    except SailError:
        return 0
    return image_hash(image) if isinstance(image, str | Path) else 0
