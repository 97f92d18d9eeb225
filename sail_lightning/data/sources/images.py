"""What a row says of its picture, and masks of files that do not say how large their pictures are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size
from sail_lightning.image.segmentations import Encoded, Segmentation
from sail_lightning.sample import BoolMask


@dataclass(frozen=True)
class UnsizedSegmentation:
    """The union of encoded masks on a picture, whose size is read when the mask is called for."""

    parts: tuple[Encoded, ...]
    image: str

    def __call__(self) -> BoolMask:
        return Segmentation(self.parts, image_size(self.image))()


def picture_path(folder: Path, item: dict[str, Any], key: str) -> str | None:
    """The picture that a record of a file names; None if it names none, which `picture_of` tells of."""
    return str(folder / item[key]) if isinstance(item.get(key), str) else None


def picture_of(row: Row, key: str) -> str:
    """The picture of a row.

    Raises:
        SailError: the record named none; `key` is where it should have.
    """
    path: str | None = row["image"]
    if path is None:
        raise SailError(f"it names no picture; give it `{key}`")
    return path
