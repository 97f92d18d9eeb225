"""Loads the images of a source, each file once, in parallel and at the size that the student sees."""

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
from sail_lightning.features.store import image_key
from sail_lightning.image.preprocessing import load_image, resize_image
from sail_lightning.settings.renames import renamed


@dataclass(frozen=True)
class ImageLocation:
    """Location of an image in a source.

    Attributes:
        record: Index of the record.
        number: Index of the image within the record.
        name: Name that is the same in each run on the same data: the path of the file, or else one that is made of
            the settings of the data and the location.
    """

    record: int
    number: int
    name: str


@dataclass(frozen=True)
class LoadedImage:
    """An image as the student sees it, or its fault.

    Attributes:
        location: Location of the image.
        key: `store.image_key` of the pixels; empty if the image cannot be read.
        pixels: Pixels (3, height, width) uint8, RGB; None if the image cannot be read.
        fault: Message of the error if the image cannot be read.
    """

    location: ImageLocation
    key: str = ""
    pixels: NDArray[np.uint8] | None = None
    fault: str = ""


def locate_images(
    source: Source, records: int, data: Any, tell: Callable[[int, int], None]
) -> tuple[list[ImageLocation], list[str]]:
    """Returns the locations of the images of the first `records` records, each file once, and faults of records.

    Args:
        source: Source of the training.
        records: Number of records that are read.
        data: Settings of the data as JSON, from which images without a file get their names.
        tell: Called with the number of records that are done and the number of all.
    """
    unnamed = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]
    found: dict[str, ImageLocation] = {}
    faults = []
    for record in range(records):
        try:
            images = source[record].images
        except SailError as error:
            faults.append(str(error))
            images = ()
        for number, image in enumerate(images):
            own = str(Path(image).resolve()) if isinstance(image, str | Path) else f"{unnamed} {record} {number}"
            found.setdefault(own, ImageLocation(record, number, own))
        tell(record + 1, records)
    return list(found.values()), faults


def load_images(
    source: Source, encoder: Encoder, wanted: Sequence[ImageLocation], workers: int
) -> Iterator[LoadedImage]:
    """Yields the images at these locations in order, read by `workers` processes; 0 reads in this one."""
    images = _Images(source, encoder.patch_size, encoder.max_side, encoder.resize, wanted)
    yield from DataLoader(images, batch_size=None, num_workers=workers)


class _Images(Dataset[LoadedImage]):
    def __init__(
        self, source: Source, patch_size: int, max_side: int, resize: Any, wanted: Sequence[ImageLocation]
    ) -> None:
        self.source, self.patch_size, self.max_side, self.resize = source, patch_size, max_side, resize
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> LoadedImage:
        location = self.wanted[index]
        try:
            image = load_image(self.source[location.record].images[location.number])
            pixels = resize_image(image, self.patch_size, self.max_side, self.resize)
        except SailError as error:
            return LoadedImage(location, fault=str(error))
        turned = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return LoadedImage(location, image_key(turned), turned)


__getattr__ = renamed(
    __name__, {"Place": "ImageLocation", "Read": "LoadedImage", "places": "locate_images", "read": "load_images"}
)
