"""Described objects of SAM's images: one image has more than a conversation holds, one has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, Thing, dump, photo
from sail_lightning.data.sources import layout

OBJECTS = {730: 3, 731: 12, 732: 0}
"""How many of each image."""


def write(root: Path) -> None:
    """The JSON list, and the images."""
    records: list[dict[str, Any]] = []
    for number, count in OBJECTS.items():
        one = photo(number)
        one.save(root / layout.SAM_IMAGES / image_name(number))
        objects = [{"segmentation": thing(one, n).rle(), "caption": caption(one, n)} for n in range(count)]
        records.append({"image_name": image_name(number), "object_annotations": objects})
    dump(root / layout.SAM_PROMPTS, records)


def image_name(number: int) -> str:
    return f"sa_{number}.jpg"


def thing(one: Photo, place: int) -> Thing:
    return one.things[place % len(one.things)]


def caption(one: Photo, place: int) -> str:
    """As its writer saw it: with a mark around the object."""
    return f"The highlighted thing by a yellow edge is {thing(one, place).colour}, piece № {place}."
