"""Pix2Cap: the object that a longer description means, in photos of COCO panoptic."""

from __future__ import annotations

from typing import Any

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.panoptic import DescribedSegments, as_description, segment_mask
from sail_lightning.encoding import prompt_templates
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn
from sail_lightning.settings.ranges import PositiveInt


@register
class Pix2CapSegmentation(DescribedSegments):
    """Pix2Cap, to be segmented: one turn per described object.

    Args:
        objects: most per conversation.
        kwargs: arguments of `DescribedSegments`.
    """

    def __init__(self, *, objects: PositiveInt = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objects = objects

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        turns, masks = [], []
        for place, segment in enumerate(sampler.sample(row["segments_info"], self.objects)):
            question = sampler.choice(prompt_templates.BY_DESCRIPTION).format(as_description(segment))
            turns.append(Turn(question, sampler.choice(prompt_templates.SEGMENT_ANSWERS), "refer", (place,)))
            masks.append(segment_mask(row, segment))
        return Sample(row["image"], tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])
