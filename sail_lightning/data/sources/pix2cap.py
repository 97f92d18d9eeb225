"""Pix2Cap: the object that a longer description means, in photos of COCO panoptic."""

from __future__ import annotations

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Choice
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.panoptic import DescribedSegments, as_description, segment_mask
from sail_lightning.encoding import prompt_templates
from sail_lightning.sample import Sample, Turn


class Pix2CapSegmentation(DescribedSegments):
    """Pix2Cap, to be segmented: one turn per described object.

    Args:
        annotations: the JSON file, laid out as COCO's panoptic one with a `description` per segment.
        pngs: folder of COCO's panoptic PNGs.
        images: folder of the photos.
        objects: most per conversation.
    """

    def __init__(
        self,
        annotations: str = layout.PIX2CAP,
        pngs: str = layout.PANOPTIC_PNGS,
        images: str = layout.COCO_TRAIN2017,
        objects: int = 5,
    ) -> None:
        super().__init__(annotations, pngs, images)
        self.objects = objects

    def sample(self, row: Row, choose: Choice) -> Sample:
        turns, masks = [], []
        for place, segment in enumerate(choose.some(row["segments_info"], self.objects)):
            question = choose.one(prompt_templates.BY_DESCRIPTION).format(as_description(segment))
            turns.append(Turn(question, choose.one(prompt_templates.SEGMENT_ANSWERS), "refer", (place,)))
            masks.append(segment_mask(row, segment))
        return Sample(row["image"], tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])
