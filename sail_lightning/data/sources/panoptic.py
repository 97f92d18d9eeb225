"""COCO's panoptic files: a JSON file that lists the segments of each picture, and a PNG in which they are drawn.

A pixel of the PNG belongs to the segment R + 256 G + 65536 B. Nothing is decoded here: masks are references (official
defect E48: all segments of a picture were decoded at full size before five were drawn).
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
from sail_lightning.data.sources.coco_names import CATEGORIES, Category, said
from sail_lightning.data.sources.indexed import IndexedSource, data_path, read_json, rows_of
from sail_lightning.errors import SailError
from sail_lightning.image.segmentations import PanopticSegments
from sail_lightning.sample import BoolMask

SHORTEST_DESCRIPTION = 5
"""A description must have more characters than this to be of use (official code)."""


class PanopticSource(IndexedSource):
    """One row per picture that has a segment to ask about, without the other segments.

    A row is `{"id", "image", "png", "segments_info": [segment, ...]}`. A segment is as the file has it, less `area`,
    and with `name` and `thing` of its category where it has a known one.

    Args:
        annotations: the JSON file. The classes that it lists win over COCO's own.
        pngs: folder of the PNGs.
        images: folder of the photos, which are called as the PNGs but end with `.jpg`.
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
        """Whether a segment can be asked about."""

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
            yield row | ({} if segments is None else {"segments_info": segments})  # for `sample` to tell of
        elif kept := [_named(one, names) for one in segments if self.wanted(one)]:
            yield row | {"segments_info": kept}


class DescribedSegments(PanopticSource):
    """The segments of Pix2Cap that have a description of more than `SHORTEST_DESCRIPTION` characters.

    Args:
        annotations: the JSON file, laid out as COCO's panoptic one with a `description` per segment.
        kwargs: arguments of `PanopticSource`.
    """

    def __init__(self, annotations: str = layout.PIX2CAP, **kwargs: Any) -> None:
        super().__init__(annotations, **kwargs)

    def wanted(self, segment: Row) -> bool:
        return len(as_description(segment)) > SHORTEST_DESCRIPTION


def as_description(segment: Row) -> str:
    """A segment's description on one line; empty if it has none."""
    return " ".join(str(segment.get("description") or "").split())


def categories(content: dict[str, Any]) -> dict[int, Category]:
    """The classes of a panoptic file: its own, or COCO's if it lists none.

    COCO's own names are put as people say them. A class that does not say whether it is a thing is one, unless COCO's
    table knows it as stuff.
    """
    listed = content.get("categories")
    if not listed:
        return CATEGORIES
    found = {}
    for one in listed:
        known = CATEGORIES.get(one["id"])
        found[one["id"]] = Category(said(one["name"]), bool(one.get("isthing", known.thing if known else True)))
    return found


def category_of(segment: Row) -> Category:
    """The class of a row's segment.

    Raises:
        SailError: the file has no such class.
    """
    if "name" not in segment:
        id, category = segment["id"], segment["category_id"]
        raise SailError(f"segment {id} is of category {category}, which `categories` does not list; mend either")
    return Category(segment["name"], segment["thing"])


def segment_mask(row: Row, *segments: Row) -> PanopticSegments:
    """The mask of some of a row's segments, their union."""
    return PanopticSegments(row["png"], tuple(int(segment["id"]) for segment in segments))


@dataclass(frozen=True)
class FromLeft:
    """Of some segments of a PNG, the one whose leftmost pixel is at `place` from the left, counted from 0.

    Which one that is shows when the PNG is decoded, and only then: for files that do not give boxes. Segments that the
    PNG lacks come last.
    """

    path: str
    ids: tuple[int, ...]
    place: int

    def __call__(self) -> BoolMask:
        masks = [PanopticSegments(self.path, (id,))() for id in self.ids]
        return sorted(masks, key=_left)[self.place]


def _left(mask: BoolMask) -> int:
    """The leftmost column that is on; the width if none is."""
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]) if len(columns) else mask.shape[1]


def _named(segment: Row, names: dict[int, Category]) -> Row:
    category = names.get(segment.get("category_id", -1))
    kept = {key: value for key, value in segment.items() if key != "area"}
    return kept | ({"name": category.name, "thing": category.thing} if category else {})
