"""A data source that asks for Pix2Cap's descriptions of segments, given as visual prompts."""

from __future__ import annotations

from sail_lightning.data.prompting import described
from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.panoptic import DescribedSegments, as_description, segment_mask
from sail_lightning.data.sources.prompted import PromptedSource
from sail_lightning.registry import register
from sail_lightning.sample import Sample


@register
class Pix2CapPrompts(PromptedSource, DescribedSegments):
    """Asks for the descriptions of one to `objects` segments of an image."""

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        segments = self.prompting.sample_objects(row["segments_info"], sampler)
        objects = [(segment_mask(row, segment), as_description(segment)) for segment in segments]
        return self.prompting.build_conversation(
            objects, described(sampler), sampler, image=row["image"], source=str(self.files[0]), id=row["id"]
        )
