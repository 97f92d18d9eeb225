"""ReasonSeg: three folders of photos with outlines, some of them to be ignored, in two text encodings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, photo
from sail_lightning.data.sources import layout

SPLITS = {"train": range(800, 804), "val": range(810, 812), "test": range(820, 822)}
"""Numbers of the photos."""
SENTENCES = ["What a café needs for an œuf ", "the thing that shines", "the thing in front", "whatever is painted"]


def write(root: Path) -> None:
    """The photos, and a JSON file beside each. Odd ones are in Windows-1252, even ones in UTF-8."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            one = photo(number)
            path = one.save(root / layout.REASON_SEG / split / f"{number}_{split}.jpg")
            encoding = "cp1252" if number % 2 else "utf-8"
            path.with_suffix(".json").write_bytes(json.dumps(item(one), ensure_ascii=False).encode(encoding))


def item(one: Photo) -> dict[str, Any]:
    """A photo's annotation. The first thing is the target; of every second photo the second thing is to be ignored."""
    height, width = one.size
    frame = [[0, 0], [width, 0], [width, height], [0, height]]
    shapes = [shape("flag", frame), shape("target", corners(one, 0))]
    if one.number % 2 == 0:
        shapes.append(shape("ignore_2", corners(one, 1)))
    return {
        "text": SENTENCES if one.number % 4 < 2 else SENTENCES[:1],
        "is_sentence": one.number % 3 > 0,
        "shapes": shapes,
    }


def shape(label: str, points: list[list[float]]) -> dict[str, Any]:
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points}


def corners(one: Photo, place: int) -> list[list[float]]:
    """A thing's outline as [[x, y], ...]."""
    flat = one.things[place].polygon
    return [list(point) for point in zip(flat[::2], flat[1::2], strict=True)]
