"""COCO's panoptic segments as visual prompts: which class is this region?"""

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
"""Classes that are drawn as candidates, the right one perhaps among them."""
OTHERS = "others"
"""The last candidate, and the answer where the right class is not among them."""
REMOVED = 0.05
"""How often that is."""


@register
class CocoPrompts(PromptedSource, PanopticSource):
    """Things and stuff of COCO panoptic, each to be told among candidate classes. Crowds are left out."""

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
    """Some classes with the right one among them, `others` last, and the answer; now and then without the right one."""
    names = sampler.sample([category.name for category in CATEGORIES.values()], CANDIDATES)[:CANDIDATES]
    if truth not in names:
        names = sampler.sample([*names, truth])
    answer = truth
    if sampler.bernoulli(REMOVED):
        names.remove(truth)
        answer = OTHERS
    return [*names, OTHERS], answer
