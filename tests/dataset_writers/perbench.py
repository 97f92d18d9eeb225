"""PerBench: its three files. Segmentation by words has eleven masks, so that a tag begins another, and one in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers.scenes import Photo, Thing, dump, photo
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.perbench import FILES

NUMBERS = (760, 761)
VRES = (
    ("Which thing is like obj1 but not like obj10?", "It is obj2, or obj10."),
    ("Please segment <obj3> and all that touch it.", "<obj3> and obj4; obj3 is touched by obj4."),
    ("Please segment the odd one out.", "obj11"),
)
"""Questions and answers; `obj1` to `obj11` are masks 0 to 10."""
TAGS = tuple(f"obj{number}" for number in range(1, 12))
CHOICE = "What colour is the object?\nA. {}\nB. purple\nC. black, or nearly so\nD. none of these\n"


def write(root: Path) -> None:
    """The three JSON lists, and the images."""
    files: dict[str, list[dict[str, Any]]] = {task: [] for task in FILES}
    for number in NUMBERS:
        one = photo(number)
        name = f"sa_{number}.jpg"
        one.save(root / layout.PERBENCH / "images" / name)
        objects = [{"segmentation": thing.rle(), "caption": caption(thing)} for thing in one.things]
        files["caption"].append({"image_name": name, "object_annotations": objects})
        mcqs = [
            {"object": thing.rle(), "question": CHOICE.format(thing.colour), "answer": answer}
            for thing, answer in zip(one.things, ("A", f"A. {one.things[1].colour}", one.things[2].colour), strict=True)
        ]
        files["choice"].append({"image_name": name, "mcqs": mcqs})
        masks = {tag: tagged(one, tag).rle() for tag in TAGS}
        files["vres"] += [
            {"image_name": name, "question": question, "answer": answer, "segmentations": masks}
            for question, answer in VRES
        ]
    for task, records in files.items():
        dump(root / layout.PERBENCH / FILES[task], records)  # type: ignore[index]


def caption(thing: Thing) -> str:
    return f"A {thing.colour} thing, as naïve as it is flat."


def tagged(one: Photo, tag: str) -> Thing:
    """The object of a tag."""
    return one.things[TAGS.index(tag) % len(one.things)]
