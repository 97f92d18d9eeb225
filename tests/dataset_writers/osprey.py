"""Osprey-724K: its five files, over photos that lie in COCO's four folders, one in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, dump, photo
from sail_lightning.data.sources import layout

PHOTOS = {
    720: layout.COCO_TRAIN2014,
    721: layout.COCO_VAL2014,
    722: layout.COCO_TRAIN2017,
    723: layout.COCO_VAL2017,
}
"""Folders of the photos, by number."""
MANY, TOO_MANY = 12, 16
"""Regions of two conversations: `<region10>` and above are named, and there are more than prompts."""


def write(root: Path) -> None:
    """All five files, and the photos."""
    photos = {number: photo(number) for number in PHOTOS}
    for number, folder in PHOTOS.items():
        photos[number].save(root / folder / file_name(number))
    a, b, c, d = photos.values()
    files: dict[str, list[dict[str, Any]]] = {
        "osprey_conversation": [
            record(a, 3, conversations=regions_of(a)),
            record(b, MANY, conversations=talk("Is <region1> in region12 or <region10>?", "In region11, not region1.")),
            record(c, 0, conversations=talk("What is in this picture?", "Things on a grey ground, naïvely drawn.")),
            record(d, TOO_MANY, conversations=talk("What is <region16>?", "A thing.")),
        ],
        "osprey_part_level": [
            record(one, 2, conversations=talk("Which part is region1?", "A corner of <region2>.")) for one in (a, b)
        ],
        "osprey_lvis_positive_negative": [
            record(one, 1, conversations=talk(f"Is there {thing} in region1?", answer))
            for one in (b, c)
            for thing, answer in ((f"a {one.things[0].colour} thing", "Yes."), ("an elephant", "No."))
        ],
        "osprey_short_form": [
            record(one, 1, conversations=talk("Which colour is <region1>?", one.things[0].colour)) for one in (c, d)
        ],
        "osprey_detail_description": [
            record(a, 3, description=[f"<region{n}>: {told(a, n - 1)}" for n in (1, 2, 3)]),
            record(b, 2, description=[told(b, 0), "<region2>: a thing like <region1>"]),
            record(d, TOO_MANY, description=[told(d, number) for number in range(TOO_MANY)]),
        ],
    }
    for name, records in files.items():
        dump(root / layout.OSPREY / f"{name}.json", records)


def file_name(number: int) -> str:
    return f"{number:012d}.jpg"


def told(one: Photo, place: int) -> str:
    """The description of a region: a colon of its own is part of it."""
    return f"One thing: {one.things[place % len(one.things)].colour}, № {place}"


def record(one: Photo, regions: int, **words: Any) -> dict[str, Any]:
    """A record with so many regions: the photo's things in turn, as polygons, compressed and uncompressed RLE."""
    annotation = []
    for place in range(regions):
        thing = one.things[place % len(one.things)]
        annotation.append({"segmentation": (thing.polygons, thing.rle(), thing.uncompressed())[place % 3]})
    height, width = one.size
    return {"file_name": file_name(one.number), "height": height, "width": width, "annotation": annotation, **words}


def regions_of(one: Photo) -> list[dict[str, str]]:
    """Two rounds about three regions, in the file's several spellings."""
    first, second, third = (thing.colour for thing in one.things)
    return [
        *talk("<image>\nThere are <region1>, <Region2> and region3. What are they?", f"<regon1> is {first}."),
        *talk("And Region2 and regon3?", f"Regon2 is {second} and <Regon3> is {third}."),
    ]


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
