"""A source of your own in one file: referring phrases made from COCO instances.

Phrases come from categories and positions ("the dog", "the left person", "the largest car") and are unambiguous within
their photo: a phrase about a category is only made where it fits exactly one of its objects, crowds included.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sail_lightning.data.sources import Source
from sail_lightning.errors import SailError
from sail_lightning.sample import BoolMask, Sample, Turn

SIDE = {  # which of two or more objects: the first by this measure, ahead of the second by a margin
    "left": lambda box, photo: (box[0] + box[2] / 2) / photo["width"],
    "right": lambda box, photo: 1 - (box[0] + box[2] / 2) / photo["width"],
    "top": lambda box, photo: (box[1] + box[3] / 2) / photo["height"],
    "bottom": lambda box, photo: 1 - (box[1] + box[3] / 2) / photo["height"],
}
MARGIN = 0.08
"""Least distance between the outermost object and the next, as a share of the photo's side."""
Named = tuple[str, dict[str, Any]]
"""A phrase, and the record of the object that it means."""


class CocoPhrases(Source):
    """Photos with masks in COCO's instance format.

    Args:
        annotations: the JSON file of instances.
        images: folder of the photos.
        limit: how many photos, in the order of the file; null is all.
        phrases: Largest number of phrases per photo, largest objects first.
        min_area: Smallest object that is asked about, as a share of the photo.
        separate: One question per sample, as a test asks them. Otherwise a photo is read once for a whole conversation,
            as many times as it has phrases: each conversation begins with another one, so that the order of turns
            does not give the answer away.
    """

    def __init__(
        self,
        annotations: str,
        images: str,
        limit: int | None = None,
        phrases: int = 3,
        min_area: float = 0.01,
        separate: bool = False,
    ) -> None:
        content = _read(Path(annotations))
        try:
            photos = _photos(content, phrases, min_area)[:limit]
        except KeyError as error:
            raise SailError(f"{annotations}: a record lacks {error}, or names an absent one; fix the file") from None
        if not photos:
            raise SailError(f"{annotations} has no photo with an object that can be named; lower min_area")
        self._samples: list[Sample] = []
        for photo, found in photos:
            turned = [found[start:] + found[:start] for start in range(len(found))]
            for group in [[item] for item in found] if separate else turned:
                turns = tuple(
                    Turn(f"Please segment {phrase}.", "It is [SEG].", "refer", (index,))
                    for index, (phrase, _) in enumerate(group)
                )
                masks = tuple(_Decoder(record["segmentation"], photo) for _, record in group)
                path = Path(images) / photo["file_name"]
                self._samples.append(Sample(path, turns, masks, source=annotations, id=str(photo["id"])))

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    @property
    def length(self) -> int:
        return len(self._samples)


class _Decoder:
    """A mask that is decoded when it is called for."""

    def __init__(self, segmentation: Any, photo: dict[str, Any]) -> None:
        self.segmentation, self.size = segmentation, (photo["height"], photo["width"])

    def __call__(self) -> BoolMask:
        rle = self.segmentation
        if isinstance(rle, list):
            rle = coco.merge(coco.frPyObjects(rle, *self.size))
        elif isinstance(rle["counts"], list):
            rle = coco.frPyObjects(rle, *self.size)
        return np.asarray(coco.decode(rle), bool)


def _photos(content: dict[str, Any], phrases: int, min_area: float) -> list[tuple[dict[str, Any], list[Named]]]:
    """Photos of which something can be said, in the order of the file, and what."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_photo: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in content["annotations"]:
        by_photo[record["image_id"]].append(record)
    found = [(photo, _phrases(by_photo[photo["id"]], photo, names, min_area)[:phrases]) for photo in content["images"]]
    return [(photo, named) for photo, named in found if named]


def _phrases(
    records: list[dict[str, Any]], photo: dict[str, Any], names: dict[int, str], min_area: float
) -> list[Named]:
    """Phrases and what they mean, the largest objects first, one phrase per object."""
    by_category: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_category[record["category_id"]].append(record)
    found: dict[int, Named] = {}
    for category, members in by_category.items():
        name = names[category]
        if any(member.get("iscrowd") for member in members):
            continue
        if len(members) == 1:
            found.setdefault(members[0]["id"], (f"the {name}", members[0]))
            continue
        for side, measure in SIDE.items():
            if chosen := _outermost(members, lambda member, m=measure: m(member["bbox"], photo)):
                found.setdefault(chosen["id"], (f"the {side} {name}", chosen))
    large = [item for item in found.values() if item[1]["area"] >= min_area * photo["width"] * photo["height"]]
    return sorted(large, key=lambda item: -item[1]["area"])


def _outermost(members: list[dict[str, Any]], measure: Callable[[dict[str, Any]], float]) -> dict[str, Any] | None:
    first, second = sorted(members, key=measure)[:2]
    return first if measure(second) - measure(first) >= MARGIN else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SailError(f"no annotations {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SailError(f"{path} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise SailError(f"{path} is no COCO instances file: it needs images, annotations and categories")
    return content
