"""A data source that asks for the class of COCO's panoptic segments, given as visual prompts."""

from __future__ import annotations

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.coco_names import CATEGORIES
from sail_lightning.data.sources.panoptic import PanopticSource, category_of, segment_mask
from sail_lightning.data.sources.prompted import PromptedSource
from sail_lightning.encoding import prompt_templates
from sail_lightning.registry import register
from sail_lightning.sample import Sample, Turn

CANDIDATES = 10
"""Number of candidate classes that are drawn; the right one may or may not be among them."""
OTHERS = "others"
"""Last candidate, which is the answer if the right class is not among the others."""
REMOVED = 0.05
"""Probability that the right class is removed from the candidates."""


@register
class CocoPrompts(PromptedSource, PanopticSource):
    """Asks which of several candidate classes a thing or stuff of COCO panoptic is. Crowds are left out."""

    def wanted(self, segment: Row) -> bool:
        return not segment.get("iscrowd")

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        segments = sampler.sample(row["segments_info"], self.prompting.objects)
        objects = [(segment_mask(row, segment), category_of(segment).name) for segment in segments]

        def turn(name: str, truth: str) -> Turn:
            candidates, answer = _candidates(truth, sampler)
            question = sampler.choice(prompt_templates.CLASSIFY).format(name) + prompt_templates.CANDIDATES.format(
                ", ".join(candidates)
            )
            return Turn(question, f"{name}: {answer}", "choice", choices=tuple(candidates))

        return self.prompting.build_conversation(
            objects, turn, sampler, image=row["image"], source=str(self.files[0]), id=row["id"]
        )


def _candidates(truth: str, sampler: Sampler) -> tuple[list[str], str]:
    """Returns candidate classes, `others` last, and the answer; at times the right class is not among them."""
    names = sampler.sample([category.name for category in CATEGORIES.values()], CANDIDATES)[:CANDIDATES]
    if truth not in names:
        names = sampler.sample([*names, truth])
    answer = truth
    if sampler.bernoulli(REMOVED):
        names.remove(truth)
        answer = OTHERS
    return [*names, OTHERS], answer
