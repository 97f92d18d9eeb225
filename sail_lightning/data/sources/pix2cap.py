"""Pix2Cap as a data source: objects of COCO panoptic images that are referred to by long descriptions."""

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
    """Asks to segment objects by their Pix2Cap description, one turn per object.

    Args:
        objects: Largest number of objects per conversation.
        kwargs: Arguments of `DescribedSegments`.
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
