"""Finds faults that show only in comparison: duplicate records, and training images that are held out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.doctor.checks import record_name
from sail_lightning.data.doctor.faults import Fault
from sail_lightning.data.doctor.leaf_sources import LeafSource, excluded, first_file, flatten_sources
from sail_lightning.data.doctor.report import LeafReport
from sail_lightning.data.doctor.state import COUNTS, Chunk
from sail_lightning.data.sources.base import Source
from sail_lightning.errors import SailError
from sail_lightning.sample import ImageRef, Sample
from sail_lightning.settings.renames import renamed

HELD_OUT = ("val", "test")
COCO_NAME = re.compile(r"COCO_\w+_\d{12}")
COCO_NUMBER = re.compile(r"\d{12}")
COCO_FOLDER = re.compile(r"(train|val|test)20")


@dataclass
class SourceScan:
    """Results of checking all records of a leaf source."""

    leaf: LeafSource
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    faults: list[Fault] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    images: list[tuple[int, ...]] = field(default_factory=list)
    contents: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults += self.leaf.faults

    def add(self, chunk: Chunk) -> None:
        for name, count in zip(COUNTS, chunk.counts, strict=True):
            self.counts[name] += count
        self.faults += chunk.faults
        self.keys += chunk.keys
        self.images += chunk.images
        self.contents += chunk.contents

    def report(self) -> LeafReport:
        images = len({one for several in self.images for one in several})
        kind = type(self.leaf.source).__name__
        counts = {**self.counts, "images": images}
        return LeafReport(self.leaf.split, self.leaf.name, kind, counts, tuple(self.faults))


def duplicates(seen: SourceScan) -> Iterator[Fault]:
    """Yields a fault for each record that repeats an earlier one of the same source."""
    first: dict[str, int] = {}
    source = seen.leaf.source
    for place, key in enumerate(seen.keys):
        if not key or first.setdefault(key, place) == place:
            continue
        number, earlier = seen.leaf.record(place), seen.leaf.record(first[key])
        sample = source.full_record(number)
        message = (
            f"the same image, turns and masks as record {record_name(source, earlier, source.full_record(earlier))}"
        )
        name = record_name(source, number, sample)
        yield Fault("duplicate_record", sample.source or first_file(source), name, number, message)


class HeldOut:
    """Images of `val`, of `test` and of the sets that mixtures of `train` exclude.

    An image is identified by its name, and also by its bytes unless the name is certainly COCO's: many folders hold a
    `0001.png`.
    """

    def __init__(self, splits: Mapping[str, Source]) -> None:
        self._sets = {name: splits[name] for name in HELD_OUT if name in splits}
        if "train" in splits:
            self._sets |= {f"the excluded {name}": source for name, source in excluded(splits["train"])}

    @cached_property
    def _images(self) -> list[tuple[str, LeafSource, NDArray[np.uint64], NDArray[np.int64]]]:
        """Held-out leaf sources, each with the unique hashes of its images and the index of a record for each hash."""
        found = [(name, leaf) for name, source in self._sets.items() for leaf in flatten_sources(name, source)]
        return [(name, leaf, *np.unique(leaf.image_keys(), return_index=True)) for name, leaf in found]

    def leaks(self, seen: SourceScan) -> Iterator[Fault]:
        """Yields faults of training records that use held-out images."""
        hashes_of_records = seen.images
        if self._sets and not any(map(any, hashes_of_records)):  # in shards: the source alone knows their names
            hashes_of_records = [(int(one),) for one in seen.leaf.image_keys()]
        hashes = np.array(sorted({one for several in hashes_of_records for one in several if one}), np.uint64)
        if not self._sets or not len(hashes):
            return
        twins: dict[int, list[tuple[str, LeafSource, int]]] = {}
        for name, leaf, theirs, places in self._images:
            for twin in np.flatnonzero(np.isin(theirs, hashes)):
                twins.setdefault(int(theirs[twin]), []).append((name, leaf, int(places[twin])))
        for place, several in enumerate(hashes_of_records):
            for number, one in enumerate(several):
                if one in twins:
                    yield from _leak(seen.leaf, seen.leaf.record(place), number, twins[one])


def copies(seen: SourceScan, held: Sequence[SourceScan], known: Collection[int | None]) -> Iterator[Fault]:
    """Yields faults of training records with an image that equals a held-out one byte by byte, whatever its name.

    Args:
        seen: Results of a training source.
        held: Results of the held-out splits, as far as they were read.
        known: Indices of records that are reported already.
    """
    owners = {one: (other, place) for other in held for place, several in enumerate(other.contents) for one in several}
    for place, several in enumerate(seen.contents):
        index = seen.leaf.record(place)
        number = next((number for number, one in enumerate(several) if one and one in owners), None)
        if number is None or index in known:
            continue
        other, twin = owners[several[number]]
        sample, source, record = seen.leaf.source.full_record(index), other.leaf.source, other.leaf.record(twin)
        theirs = source.full_record(record)
        name = record_name(source, record, theirs)
        message = f"its image is, byte by byte, also in {other.leaf.split}: record {name} of "
        message += theirs.source or other.leaf.name
        own = record_name(seen.leaf.source, index, sample)
        yield Fault("leaked_image", _file_of(sample, number), own, index, message)


def _file_of(sample: Sample, number: int) -> str:
    """Returns the file of a leaked image, or else the file that the sample was read from."""
    image = sample.images[number]
    return str(image) if isinstance(image, str | Path) else sample.source


def _leak(leaf: LeafSource, index: int, number: int, twins: list[tuple[str, LeafSource, int]]) -> Iterator[Fault]:
    """Yields a fault for one image of a record if a held-out image of its name is the same."""
    sample = leaf.source.full_record(index)
    image = sample.images[number]
    for held_out, other, place in twins:
        try:
            theirs = other.source.full_record(other.record(place))
        except SailError:  # reported by itself
            continue
        twin = theirs.images[0]
        if _same_image(image, twin):
            name = record_name(other.source, other.record(place), theirs)
            message = f"its image is also in {held_out}: record {name} of {theirs.source or other.name}"
            yield Fault(
                "leaked_image", _file_of(sample, number), record_name(leaf.source, index, sample), index, message
            )
            return


def _same_image(one: ImageRef, other: ImageRef) -> bool:
    """Returns whether two images with one name are the same."""
    paths = [Path(image) for image in (one, other) if isinstance(image, str | Path)]
    if len(paths) == 2 and all(map(_is_of_coco, paths)):
        return True
    if len(paths) == 2 and paths[0].resolve() == paths[1].resolve():
        return True
    ours, theirs = _content(one), _content(other)
    return ours is not None and ours == theirs


def _is_of_coco(path: Path) -> bool:
    """Returns whether a name is certainly COCO's: `COCO_..._` and a number, or a number in a folder such as train2017.

    A number of twelve digits alone proves nothing: other images are numbered too.
    """
    in_folder = any(COCO_FOLDER.search(folder.name) for folder in path.parents)
    return bool(COCO_NAME.fullmatch(path.stem) or (in_folder and COCO_NUMBER.fullmatch(path.stem)))


def _content(image: ImageRef) -> bytes | None:
    """Returns the bytes of an image's file, or its pixels if it has none; None if it cannot be read."""
    try:
        content = Path(image).read_bytes() if isinstance(image, str | Path) else image() if callable(image) else image
    except (OSError, SailError):
        return None
    return content if isinstance(content, bytes) else content.tobytes()


__getattr__ = renamed(__name__, {"Seen": "SourceScan"})
