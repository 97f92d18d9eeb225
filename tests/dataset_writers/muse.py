"""MUSE: answers of its own and answers to be made up, in photos of three COCO folders and all encodings of masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, Thing, dump, photo
from sail_lightning.data.sources import layout

OWN, MADE_UP, EMPTY = 600, 601, 602
"""Numbers of the photos: with text answers, without, and with a question whose answer needs no mask."""
URL = "http://images.cocodataset.org/{}/{:012d}.jpg"


def write(root: Path) -> None:
    """The JSON and the photos. Two of its items have nothing to ask about."""
    own, made_up, empty = (photo(number) for number in (OWN, MADE_UP, EMPTY))
    own.save(root / layout.COCO_TRAIN2014 / f"COCO_train2014_{OWN:012d}.jpg")
    made_up.save(root / layout.COCO_TRAIN2017 / f"{MADE_UP:012d}.jpg")
    empty.save(root / layout.COCO_VAL2017 / f"{EMPTY:012d}.jpg")
    a, b, c = own.things
    items: list[dict[str, Any]] = [
        item(
            own,
            ["Which two things would a bull see first?", " And what is the third? "],
            [[target(a, a.polygons), target(b, b.uncompressed())], [target(c, c.rle())]],
            file_name=f"COCO_train2014_{OWN:012d}.jpg",
            text_answers=[f"Perhaps the {a.colour} one {{seg}}, then the {b.colour} one {{seg}}.", None],
        ),
        item(
            made_up,
            ["What do you see?", "What lies on top of each other?"],
            [
                [target(thing, thing.polygons, rephrased=thing.colour != "red") for thing in made_up.things],
                [target(made_up.things[0], made_up.things[0].polygons * 2 + made_up.things[1].polygons)],
            ],
            coco_url=URL.format("train2017", MADE_UP),
        ),
        item(
            empty,
            ["Is anybody there?", "What is in two parts?"],
            [[], [target(empty.things[0], [empty.things[0].rle(), empty.things[1].uncompressed()])]],
            coco_url=URL.format("val2017", EMPTY),
            text_answers=["No, nobody is.", ""],
        ),
    ]
    items.append(items[0] | {"ann_list": []})
    items.append(items[0] | {"questions": [], "answers": [], "text_answers": []})
    dump(root / layout.MUSE, items)


def item(one: Photo, questions: list[str], answers: list[list[dict[str, Any]]], **more: Any) -> dict[str, Any]:
    height, width = one.size
    objects = [{"category_id": place} for place, _ in enumerate(one.things, 1)]
    return {
        "height": height, "width": width, "ann_list": objects, "questions": questions, "answers": answers, **more,
    }  # fmt: skip


def target(thing: Thing, segmentation: Any, rephrased: bool = False) -> dict[str, Any]:
    said = {"segmentation": segmentation, "category_name": f"{thing.colour} Thing"}
    return said | ({"rephrased_name": f"the {thing.colour} Façade"} if rephrased else {})
