"""GLaMM's grounded captions: GranD-f, OpenPSG, RefCOCOg and Flickr30k for training, and the benchmark of GranD-f."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, dump, photo
from sail_lightning.data.sources import layout

GRANDF, OPENPSG, REFCOCOG, FLICKR = range(900, 903), range(910, 912), range(920, 922), range(930, 933)
"""Numbers of the photos. The last Flickr photo has a caption of two words."""
BENCHMARK = {"val": range(940, 942), "test": range(942, 944)}
ANNOTATIONS, IMAGES = Path(layout.GLAMM_ANNOTATIONS), Path(layout.GLAMM_IMAGES)


def write(root: Path) -> None:
    """All five sets. No phrase of theirs is to be left out."""
    entries = [grandf_entry(photo(number), f"sa_{number}.jpg") for number in GRANDF]
    entries[-1] |= {"groundings": {}}
    dump(root / ANNOTATIONS / "GranDf_HA_GCG_train.json", entries)
    for number in GRANDF:
        photo(number).save(root / IMAGES / "grandf/train" / f"sa_{number}.jpg")
    names = {
        number: f"{folder}/{number:012d}.jpg" for number, folder in zip(OPENPSG, ("train2017", "val2017"), strict=True)
    }
    for number, name in names.items():
        photo(number).save(root / "coco" / name)
    dump(root / ANNOTATIONS / "OpenPsgGCG_train.json", [grandf_entry(photo(n), name) for n, name in names.items()])
    dump(root / ANNOTATIONS / "RefCOCOg_GCG_train.json", [refcocog_entry(photo(number)) for number in REFCOCOG])
    for number in REFCOCOG:
        photo(number).save(root / layout.COCO_TRAIN2014 / f"COCO_train2014_{number:012d}.jpg")
    write_flickr(root)
    write_benchmark(root)


def caption(one: Photo) -> str:
    """Names the three things of a photo, in order."""
    a, b, c = (thing.colour for thing in one.things)
    return f"A {a} shape (très joli) beside the {b} shape, and a {c} shape."


def span(text: str, phrase: str) -> list[int]:
    return [text.index(phrase), text.index(phrase) + len(phrase)]


def grandf_entry(one: Photo, file_name: str) -> dict[str, Any]:
    """The first two things have masks, the second in two parts of which one lies in the other; the last has none."""
    text = caption(one)
    a, b, c = one.things
    height, width = one.size
    return {
        "file_name": file_name,
        "height": height,
        "width": width,
        "image_id": file_name.rsplit(".", 1)[0],
        "caption": f'"{text}"',
        "groundings": {
            f"the {b.colour} shape": {
                "token_positives": span(text, f"the {b.colour} shape"),
                "rle_masks": [b.rle(), b.rle()],
            },
            f"a {c.colour} shape": None,
            f"A {a.colour} shape": {"token_positives": span(text, f"A {a.colour} shape"), "rle_masks": [a.rle()]},
        },
    }


def refcocog_entry(one: Photo) -> dict[str, Any]:
    """Sentences are written otherwise than in the caption."""
    refs = [
        {"sentence": f"{thing.colour.upper()}  Shape.", "segmentation": thing.polygons, "bbox": thing.box}
        for thing in reversed(one.things)
    ]
    name = f"COCO_train2014_{one.number:012d}.jpg"
    return {str(one.number): {"img_file_name": name, "caption": caption(one), "refs": refs}}


def write_flickr(root: Path) -> None:
    """Beside the three things, each photo has annotations that say `ignore`, lie outside or cover nothing."""
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number in FLICKR:
        one, name = photo(number), f"{number}.jpg"
        one.save(root / IMAGES / "flickr30k/Flickr30K" / name)
        text = "Three shapes" if number == FLICKR[-1] else caption(one)
        height, width = one.size
        content["images"].append({"id": number, "file_name": name, "height": height, "width": width, "caption": text})
        for thing in one.things if number != FLICKR[-1] else ():
            words = span(text, f"{thing.colour} shape")
            base = {"image_id": number, "category_id": 1, "bbox": thing.box, "area": float(thing.mask.sum())}
            base |= {"tokens_positive": [words, [0, 1]], "sam_mask": thing.rle(), "iscrowd": 0}
            for more in ({}, {"ignore": True}, {"bbox": [width, 0, 5, 5]}, {"area": 0}, {"bbox": [0, 0, 0.5, 5]}):
                content["annotations"].append({"id": len(content["annotations"]), **base, **more})
    dump(root / ANNOTATIONS / "flickr_mergedGT_GCG_train.json", content)


def write_benchmark(root: Path) -> None:
    """Captions with their phrases, of which the last one does not stand in the caption, and masks."""
    for split, numbers in BENCHMARK.items():
        captions: dict[str, Any] = {"images": [], "annotations": []}
        masks: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
        for number in numbers:
            one, id = photo(number), f"sa_{number}"
            one.save(root / IMAGES / "grandf/val_test" / f"{id}.jpg")
            phrases = [f"{thing.colour} shape" for thing in one.things[:2]] + ["the other one"]
            captions["images"].append({"id": id})
            said = {"id": number, "image_id": id, "caption": caption(one), "labels": phrases}
            captions["annotations"].append(said)
            masks["images"].append({"id": id, "height": one.size[0], "width": one.size[1]})
            for thing in one.things:
                found = {"id": len(masks["annotations"]) + 1, "image_id": id, "category_id": 1, "iscrowd": 0}
                masks["annotations"].append(found | {"segmentation": thing.rle(), "area": float(thing.mask.sum())})
        for kind, content in (("caption", captions), ("mask", masks)):
            dump(root / ANNOTATIONS / "gcg_val_test" / f"{split}_gcg_coco_{kind}_gt.json", content)
