"""COCO panoptic: things in front of four bands of stuff. One thing is a crowd; ids go beyond 65536."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_writers.scenes import Photo, dump, photo, rgb_of
from sail_lightning.data.sources import layout

NUMBERS = range(700, 704)
"""Of the photos."""
CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "supercategory": "person"},
    {"id": 18, "name": "dog", "isthing": 1, "supercategory": "animal"},
    {"id": 149, "name": "road", "isthing": 0, "supercategory": "ground"},
    {"id": 155, "name": "sea", "isthing": 0, "supercategory": "water"},
    {"id": 187, "name": "sky-other-merged", "isthing": 0, "supercategory": "sky"},
    {"id": 193, "name": "grass-merged", "isthing": 0, "supercategory": "plant"},
]
THINGS = ((1, 0), (1, 0), (18, 0), (1, 1))
"""(category id, crowd) of the four things of a photo."""
STUFF = (187, 155, 193, 149)
"""Category ids of the bands, from the top."""


@dataclass(frozen=True)
class Segment:
    """A segment: what the JSON says of it, and its mask (H, W) bool. `colour` is None for stuff."""

    id: int
    category_id: int
    crowd: int
    mask: np.ndarray
    colour: str | None = None

    def info(self, box: bool) -> dict[str, Any]:
        """As `segments_info` has it; older files have no box."""
        said = {"id": self.id, "category_id": self.category_id, "iscrowd": self.crowd, "area": int(self.mask.sum())}
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        return said | ({"bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]} if box else {})


def write(root: Path) -> None:
    """The JSON, the PNGs and the photos."""
    photos = [scene(number) for number in NUMBERS]
    content: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": CATEGORIES}
    for one in photos:
        found = segments(one)
        name = {"file_name": f"{one.number:012d}.jpg", "height": one.size[0], "width": one.size[1]}
        content["images"].append({"id": one.number, **name})
        infos = [segment.info(box=one.number % 2 == 0) for segment in found]
        content["annotations"].append({"image_id": one.number, "file_name": png_name(one), "segments_info": infos})
        save(root, one, found)
    dump(root / layout.PANOPTIC_JSON, content)


def save(root: Path, one: Photo, found: list[Segment]) -> None:
    """A photo and its PNG."""
    one.save(root / layout.COCO_TRAIN2017 / f"{one.number:012d}.jpg")
    path = root / layout.PANOPTIC_PNGS / png_name(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = np.zeros(one.size, np.int64)
    for segment in found:
        ids[segment.mask] = segment.id
    rgb_of(ids).save(path)


def scene(number: int) -> Photo:
    """A photo with four things."""
    return photo(number, things=len(THINGS))


def png_name(one: Photo) -> str:
    return f"{one.number:012d}.png"


def segments(one: Photo) -> list[Segment]:
    """The segments that can be seen, bands first."""
    owners, height = one.segment_map(), one.size[0]
    found = []
    for place, category in enumerate(STUFF):
        band = np.zeros(one.size, bool)
        band[place * height // len(STUFF) : (place + 1) * height // len(STUFF)] = True
        found.append(Segment(place + 1, category, 0, band & (owners == 0)))
    for place, ((category, crowd), thing) in enumerate(zip(THINGS, one.things, strict=True)):
        id = 70_000 * (place + 1) + one.number
        found.append(Segment(id, category, crowd, owners == place + 1, thing.colour))
    return [segment for segment in found if segment.mask.any()]
