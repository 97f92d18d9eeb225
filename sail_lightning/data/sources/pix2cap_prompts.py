"""Pix2Cap's descriptions of COCO's panoptic segments, asked for by visual prompts."""

from __future__ import annotations

from sail_lightning.data.prompting import Prompting, described
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Choice
from sail_lightning.data.sources import layout
from sail_lightning.data.sources.panoptic import DescribedSegments, as_description, segment_mask
from sail_lightning.sample import Sample


class Pix2CapPrompts(DescribedSegments):
    """One to `objects` segments of a photo, each to be described.

    Args:
        annotations: the JSON file.
        pngs: folder of COCO's panoptic PNGs.
        images: folder of the photos.
        objects: most per conversation.
        num_prompts: ids that prompts carry, 0 to num_prompts - 1.
        shapes: how often a prompt is a `mask`, `box`, `point` or `scribble`; null is always the mask.
        absent: probability, per object, of a question about a prompt that is not there, once at most.
    """

    def __init__(
        self,
        annotations: str = layout.PIX2CAP,
        pngs: str = layout.PANOPTIC_PNGS,
        images: str = layout.COCO_TRAIN2017,
        objects: int = 5,
        num_prompts: int = 15,
        shapes: dict[str, float] | None = None,
        absent: float = 0.05,
    ) -> None:
        super().__init__(annotations, pngs, images)
        self.prompting = Prompting(objects, num_prompts, shapes, absent)

    def sample(self, row: Row, choose: Choice) -> Sample:
        segments = self.prompting.some(row["segments_info"], choose)
        objects = [(segment_mask(row, segment), as_description(segment)) for segment in segments]
        return self.prompting.interview(
            objects, described(choose), choose, image=row["image"], source=str(self.files[0]), id=row["id"]
        )
