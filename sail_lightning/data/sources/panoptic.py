"""COCO's panoptic files as data sources: a JSON file with the segments of each image, and a PNG that draws them.

A pixel of the PNG belongs to the segment R + 256 G + 65536 B. No PNG is decoded here: masks are references (official
defect E48: all segments of an image were decoded at full size before five were drawn).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from sail_lightning.data.records import Row
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.coco_names import CATEGORIES, Category, everyday_name
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json, rows_of
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import PanopticSegments
from sail_lightning.sample import BoolMask

SHORTEST_DESCRIPTION = 5
"""Number of characters that a description must exceed to be used, as in the official code."""


class PanopticSource(IndexedSource):
    """Base of sources of panoptic files: one row per image that has a segment to ask about, with these segments only.

    A row is `{"id", "image", "png", "segments_info": [segment, ...]}`. A segment is that of the file without `area`,
    and with the `name` and `thing` of its category if that is known.

    Args:
        annotations: The JSON file. Classes that it lists replace COCO's own.
        pngs: Folder of the PNGs.
        images: Folder of the images, which have the names of the PNGs with the suffix `.jpg`.
    """

    def __init__(
        self,
        annotations: str = layout.PANOPTIC_JSON,
        pngs: str = layout.PANOPTIC_PNGS,
        images: str = layout.COCO_TRAIN2017,
    ) -> None:
        super().__init__([annotations])
        self.pngs, self.images = data_path(pngs), data_path(images)

    @abstractmethod
    def wanted(self, segment: Row) -> bool:
        """Returns whether a segment can be asked about."""

    def settings(self) -> Any:
        return [str(self.pngs), str(self.images)]

    def rows(self) -> Iterator[Row]:
        content = read_json(self.files[0])
        names = categories(content)
        for number, annotation in enumerate(content["annotations"]):
            yield from rows_of(f"record {number}", partial(self._row, annotation, names))

    def _row(self, annotation: Row, names: dict[int, Category]) -> Iterator[Row]:
        name = annotation.get("file_name") or f"{annotation.get('image_id')}.png"
        row: Row = {"id": str(annotation.get("image_id", PurePath(name).stem)), "png": str(self.pngs / name)}
        row["image"] = str(self.images / PurePath(name).with_suffix(".jpg"))
        segments = annotation.get("segments_info")
        if segments is None or not all(isinstance(one, dict) for one in segments):
            yield row | ({} if segments is None else {"segments_info": segments})  # `sample` reports it
        elif kept := [_named(one, names) for one in segments if self.wanted(one)]:
            yield row | {"segments_info": kept}


class DescribedSegments(PanopticSource):
    """Base of Pix2Cap sources: segments that have a description of more than `SHORTEST_DESCRIPTION` characters.

    Args:
        annotations: The JSON file, laid out as COCO's panoptic one with a `description` per segment.
        kwargs: Arguments of `PanopticSource`.
    """

    def __init__(self, annotations: str = layout.PIX2CAP, **kwargs: Any) -> None:
        super().__init__(annotations, **kwargs)

    def wanted(self, segment: Row) -> bool:
        return len(as_description(segment)) > SHORTEST_DESCRIPTION


def as_description(segment: Row) -> str:
    """Returns a segment's description on one line; empty if it has none."""
    return " ".join(str(segment.get("description") or "").split())


def categories(content: dict[str, Any]) -> dict[int, Category]:
    """Returns the classes of a panoptic file by id: its own, or COCO's if it lists none.

    COCO's names are replaced by everyday names. A class without `isthing` is a thing, unless it is stuff in COCO.
    """
    listed = content.get("categories")
    if not listed:
        return CATEGORIES
    found = {}
    for one in listed:
        known = CATEGORIES.get(one["id"])
        found[one["id"]] = Category(
            everyday_name(one["name"]), bool(one.get("isthing", known.thing if known else True))
        )
    return found


def category_of(segment: Row) -> Category:
    """Returns the class of a row's segment.

    Raises:
        SailError: The file does not list the class.
    """
    if "name" not in segment:
        id, category = segment["id"], segment["category_id"]
        raise SailError(f"segment {id} is of category {category}, which `categories` does not list; fix either")
    return Category(segment["name"], segment["thing"])


def segment_mask(row: Row, *segments: Row) -> PanopticSegments:
    """Returns a mask reference: the union of some of a row's segments."""
    return PanopticSegments(row["png"], tuple(int(segment["id"]) for segment in segments))


@dataclass(frozen=True)
class FromLeft:
    """A mask reference: one of some segments of a PNG, chosen by the order of their leftmost pixels.

    The order is known only when the PNG is decoded; it is used for files that give no boxes. Segments that the PNG
    lacks come last.

    Attributes:
        path: Path of the PNG.
        ids: Ids of the segments.
        index: Position of the wanted segment from the left, counted from 0.
    """

    path: str
    ids: tuple[int, ...]
    index: int

    def __call__(self) -> BoolMask:
        masks = [PanopticSegments(self.path, (id,))() for id in self.ids]
        return sorted(masks, key=_left)[self.index]


def _left(mask: BoolMask) -> int:
    """Returns the leftmost column that is on; the width if none is."""
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]) if len(columns) else mask.shape[1]


def _named(segment: Row, names: dict[int, Category]) -> Row:
    category = names.get(segment.get("category_id", -1))
    kept = {key: value for key, value in segment.items() if key != "area"}
    return kept | ({"name": category.name, "thing": category.thing} if category else {})
