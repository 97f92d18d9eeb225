"""Images that rows name, and masks of files that do not give the size of their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.errors import SailError
from sail_lightning.image.preprocessing import image_size
from sail_lightning.image.segmentations import Encoded, Segmentation
from sail_lightning.sample import BoolMask
from sail_lightning.settings.renames import renamed


@dataclass(frozen=True)
class UnsizedSegmentation:
    """A mask reference: the union of encoded masks; the size is read from the image when it is called."""

    parts: tuple[Encoded, ...]
    image: str

    def __call__(self) -> BoolMask:
        return Segmentation(self.parts, image_size(self.image))()


def listed_image(folder: Path, item: dict[str, Any], key: str) -> str | None:
    """Returns the image path that a record of a file names; None if it names none, which `required_image` reports.

    Args:
        folder: Folder of the images.
        item: Record of the file.
        key: Key under which it names its image.
    """
    return str(folder / item[key]) if isinstance(item.get(key), str) else None


def required_image(row: Row, key: str) -> str:
    """Returns the image path of a row.

    Raises:
        SailError: The record names no image under `key`.
    """
    path: str | None = row["image"]
    if path is None:
        raise SailError(f"it names no image; give it `{key}`")
    return path


__getattr__ = renamed(__name__, {"picture_of": "required_image", "picture_path": "listed_image"})
