"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, dump, photo

SPLITS = {"refcoco": ("unc", "train val testA testB"), "refcoco+": ("unc", "train val testA testB")}
SPLITS["refcocog"] = ("umd", "train val test")
PHOTOS = 3
"""Of each split."""


def write(root: Path) -> None:
    """All four sets, in the published files."""
    for name, (by, splits) in SPLITS.items():
        refs, photos = [], []
        for place, split in enumerate(splits.split()):
            some = [photo(100 * place + number) for number in range(PHOTOS)]
            photos += some
            refs += [ref for one in some for ref in refs_of(one, split)]
        folder = root / "ref_seg" / name
        instances(folder / "instances.json", photos)
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
        save_photos(root, photos)
    write_grefcoco(root)


def file_name(one: Photo) -> str:
    return f"COCO_train2014_{one.number:012d}.jpg"


def save_photos(root: Path, photos: Sequence[Photo]) -> None:
    for one in photos:
        one.save(root / "coco/train2014" / file_name(one))


def annotation_id(one: Photo, place: int) -> int:
    return one.number * 10 + place


def instances(path: Path, photos: Sequence[Photo]) -> None:
    """COCO's file. Objects are polygons, compressed and uncompressed RLE in turn; the last of a photo is a crowd."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for one in photos:
        height, width = one.size
        content["images"].append({"id": one.number, "file_name": file_name(one), "height": height, "width": width})
        for place, thing in enumerate(one.things):
            forms = (thing.polygons, thing.rle(), thing.uncompressed())
            content["annotations"].append(
                {
                    "id": annotation_id(one, place),
                    "image_id": one.number,
                    "category_id": 1,
                    "segmentation": forms[(one.number + place) % 3],
                    "bbox": thing.box,
                    "area": float(thing.mask.sum()),
                    "iscrowd": 0,
                }
            )
    dump(path, content)


def refs_of(one: Photo, split: str) -> list[dict[str, Any]]:
    """One ref per object but the last, which is never referred to; the first has two refs, and phrases in unicode."""
    made = []
    for place, thing in [*enumerate(one.things[:-1]), (0, one.things[0])]:
        texts = [f"The {thing.colour} thing.", f"{thing.colour} façade №{len(made)}"]
        made.append(
            {
                "ref_id": one.number * 100 + len(made),
                "ann_id": annotation_id(one, place),
                "image_id": one.number,
                "category_id": 1,
                "split": split,
                "sentences": [sentence(text, number) for number, text in enumerate(texts)],
            }
        )
    return made


def sentence(text: str, number: int) -> dict[str, Any]:
    return {"raw": text, "sent": text.lower().rstrip("."), "tokens": text.lower().split(), "sent_id": number}


def write_grefcoco(root: Path) -> None:
    """One object, two, none, and two of which one is a crowd, of each photo."""
    refs, photos = [], []
    for place, split in enumerate(("train", "val", "testA", "testB")):
        for number in range(PHOTOS):
            one = photo(100 * place + number)
            photos.append(one)
            ids = [annotation_id(one, thing) for thing in range(3)]
            for ann_id, text in (
                (ids[:1], f"the {one.things[0].colour} thing"),
                (ids[:2], "both things in front"),
                ([-1], "the purple elephant"),
                ([ids[0], ids[2]], "the crowd and the thing"),
            ):
                refs.append(
                    {
                        "ref_id": len(refs),
                        "ann_id": ann_id,
                        "image_id": one.number,
                        "category_id": [1],
                        "split": split,
                        "sentences": [sentence(text, 0)],
                    }
                )
    folder = root / "ref_seg/grefcoco"
    instances(folder / "instances.json", photos)
    from json import loads

    content = loads((folder / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] % 10 == 2)
    dump(folder / "instances.json", content)
    dump(folder / "grefs(unc).json", refs)
    save_photos(root, photos)
