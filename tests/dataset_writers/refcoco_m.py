"""RefCOCO-M: the rows of its Parquet files, or the same as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, dump, photo
from sail_lightning.data.sources import layout

NUMBERS = range(500, 503)
"""Of the photos."""
FOLDER = f"{layout.REFERRING}/refcoco-m"


def write(root: Path) -> None:
    """The JSON, which needs no pyarrow, and the photos."""
    dump(root / FOLDER / "refcoco-m.json", rows())
    for number in NUMBERS:
        photo(number).save(root / layout.COCO_TRAIN2014 / file_name(photo(number)))


def write_parquet(folder: Path) -> None:
    """Two files as they are published, photos included."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for place, some in enumerate((rows()[:2], rows()[2:])):
        table = pyarrow.Table.from_pylist([{"image": {"bytes": b"JPEG", "path": None}} | one for one in some])
        parquet.write_table(table, folder / f"validation-0000{place}-of-00002.parquet")


def rows() -> list[dict[str, Any]]:
    return [row(photo(number)) for number in NUMBERS]


def file_name(one: Photo) -> str:
    return f"COCO_train2014_{one.number:012d}.jpg"


def row(one: Photo) -> dict[str, Any]:
    """Two of the three things have phrases."""
    samples = [
        {
            "id": 10 * one.number + place,
            "image_id": one.number,
            "category": "thing",
            "supercategory": "things",
            "label": thing.colour,
            "sentences": sentences(thing.colour) if place < 2 else [],
            "bbox": thing.box,
            "mask": thing.rle(),
        }
        for place, thing in enumerate(one.things)
    ]
    return {"image_id": one.number, "file_name": file_name(one), "samples": samples}


def sentences(colour: str) -> list[str]:
    return [f"{colour} thing", f"The {colour} señal."]
