"""Pix2Cap: descriptions of the things of COCO panoptic's photos. Stuff has none, an empty or a short one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset_writers import panoptic
from dataset_writers.scenes import dump
from sail_lightning.data.sources import layout

UNDESCRIBED = 703
"""A photo of which nothing is described."""


def write(root: Path) -> None:
    """The JSON, with the PNGs and photos of COCO panoptic."""
    annotations = []
    for number in panoptic.NUMBERS:
        one = panoptic.scene(number)
        found = panoptic.segments(one)
        panoptic.save(root, one, found)
        infos: list[dict[str, Any]] = []
        for place, segment in enumerate(found):
            texts: list[Any] = [None, "", "a sea", " road"]
            text = texts[place % 4] if segment.colour is None or number == UNDESCRIBED else described(segment.colour)
            infos.append({"id": segment.id} | ({} if text is None else {"description": text}))
        annotations.append({"image_id": number, "file_name": panoptic.png_name(one), "segments_info": infos})
    dump(root / layout.PIX2CAP, {"annotations": annotations})


def described(colour: str) -> str:
    """What the file says of a thing."""
    return f"The {colour} thing, a naïve shape\n on a grey ground."
