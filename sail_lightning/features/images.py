"""The pictures of a source, each file once, read side by side as the student sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from sail_lightning.data.sources.base import Source
from sail_lightning.encoding.transform import Encoder
from sail_lightning.errors import SailError
from sail_lightning.features.store import picture_key
from sail_lightning.image.preprocessing import load_image, resize_image


@dataclass(frozen=True)
class Place:
    """Where a picture is: the `number`-th of a record of the source. `name` is the same in each run on the same data:
    that of its file, or of the data and the place, where it has none."""

    record: int
    number: int
    name: str


@dataclass(frozen=True)
class Read:
    """A picture (3, height, width) uint8 as the student sees it, and its key; or why it cannot be read."""

    place: Place
    key: str = ""
    pixels: NDArray[np.uint8] | None = None
    fault: str = ""


def places(source: Source, records: int, data: Any, tell: Callable[[int, int], None]) -> tuple[list[Place], list[str]]:
    """Where the pictures of the first `records` records are, each file once; and the faults of records.

    Args:
        source: what training will read.
        records: how many of it.
        data: its settings, as JSON, which name pictures without a file.
        tell: called with the numbers of records that are seen and of all.
    """
    unnamed = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
    found: dict[str, Place] = {}
    faults = []
    for record in range(records):
        try:
            images = source[record].images
        except SailError as error:
            faults.append(str(error))
            images = ()
        for number, image in enumerate(images):
            own = str(Path(image).resolve()) if isinstance(image, str | Path) else f"{unnamed} {record} {number}"
            found.setdefault(own, Place(record, number, own))
        tell(record + 1, records)
    return list(found.values()), faults


def read(source: Source, encoder: Encoder, wanted: Sequence[Place], workers: int) -> Iterator[Read]:
    """The pictures at these places, in order, read by so many processes (0: this one)."""
    pictures = _Pictures(source, encoder.patch_size, encoder.max_side, encoder.resize, wanted)
    yield from DataLoader(pictures, batch_size=None, num_workers=workers)


class _Pictures(Dataset[Read]):
    def __init__(self, source: Source, patch_size: int, max_side: int, resize: Any, wanted: Sequence[Place]) -> None:
        self.source, self.patch_size, self.max_side, self.resize = source, patch_size, max_side, resize
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> Read:
        place = self.wanted[index]
        try:
            image = load_image(self.source[place.record].images[place.number])
            pixels = resize_image(image, self.patch_size, self.max_side, self.resize)
        except SailError as error:
            return Read(place, fault=str(error))
        turned = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return Read(place, picture_key(turned), turned)
