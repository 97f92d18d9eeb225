"""The benchmark of RefCOCOg region captions: COCO's layout, captions at the images, ids of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import dump, photo
from sail_lightning.data.sources import layout

NUMBERS = (740, 741, 742)


def write(root: Path) -> None:
    """The JSON, and the photos."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for id, number in enumerate(NUMBERS):
        one = photo(number)
        name = f"COCO_train2014_{number:012d}.jpg"
        one.save(root / layout.COCO_TRAIN2014 / name)
        height, width = one.size
        thing = one.things[0]
        content["images"].append(
            {
                "id": id,
                "original_id": number,
                "file_name": name,
                "height": height,
                "width": width,
                "caption": caption(number),
            }
        )
        content["annotations"].append(
            {
                "id": 100 + id,  # never the image's: what is found by it is wrong
                "image_id": id,
                "category_id": 1,
                "segmentation": (thing.polygons, thing.rle(), thing.uncompressed())[id % 3],
                "bbox": thing.box,
                "area": float(thing.mask.sum()),
                "iscrowd": 0,
            }
        )
    dump(root / layout.REGION_CAPTIONS, content)


def caption(number: int) -> str:
    return f"the {photo(number).things[0].colour} thing, très bien"
