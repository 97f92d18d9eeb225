"""COCO panoptic as a data source: the classes of an image, with a mask per instance or one mask per class."""

from __future__ import annotations

from typing import Any, Literal

from sail_lightning.data.records import Row
from sail_lightning.data.samplers import Sampler
from sail_lightning.data.sources.panoptic import FromLeft, PanopticSource, category_of, segment_mask
from sail_lightning.encoding import prompt_templates
from sail_lightning.registry import register
from sail_lightning.sample import MaskRef, Sample, Turn
from sail_lightning.sequence.chat_template import SEG
from sail_lightning.settings.ranges import PositiveInt


@register
class CocoPanoptic(PanopticSource):
    """Asks about the classes of COCO panoptic images, one turn per class. Crowds are left out.

    In mode `instance` the answer counts the instances of a thing from left to right, each with its mask, and gives
    stuff one mask; a sample can hold many masks. In mode `semantic` each class is one mask, also for things.

    Args:
        mode: `instance` or `semantic`, as described above.
        objects: Largest number of classes per conversation.
        kwargs: Arguments of `PanopticSource`.
    """

    def __init__(
        self, mode: Literal["instance", "semantic"] = "instance", *, objects: PositiveInt = 5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mode, self.objects = mode, objects

    def wanted(self, segment: Row) -> bool:
        return not segment.get("iscrowd")

    def sample(self, row: Row, sampler: Sampler) -> Sample:
        by_class: dict[str, list[Row]] = {}
        for segment in row["segments_info"]:
            by_class.setdefault(category_of(segment).name, []).append(segment)
        turns: list[Turn] = []
        masks: list[MaskRef] = []
        for name in sampler.sample(list(by_class), self.objects):
            turn, found = self._ask(name, row, by_class[name], sampler)
            turns.append(Turn(*turn, "refer", tuple(range(len(masks), len(masks) + len(found)))))
            masks += found
        return Sample(row["image"], tuple(turns), tuple(masks), source=str(self.files[0]), id=row["id"])

    def _ask(self, name: str, row: Row, segments: list[Row], sampler: Sampler) -> tuple[tuple[str, str], list[MaskRef]]:
        """Returns the question and the answer about a class, and the masks of the answer."""
        question = sampler.choice(prompt_templates.SEGMENT)
        if self.mode == "semantic":
            asked = question.format(f"all the {name}") + prompt_templates.SEMANTIC_MODE
            return (asked, sampler.choice(prompt_templates.SEGMENT_ANSWERS)), [segment_mask(row, *segments)]
        if not category_of(segments[0]).thing:
            return (question.format(name) + prompt_templates.SEMANTIC_MODE, f"{name} {SEG}."), [
                segment_mask(row, *segments)
            ]
        counted = " ".join(f"{name}-{number} {SEG}" for number in range(1, len(segments) + 1))
        return (question.format(name) + prompt_templates.INSTANCE_MODE, f"{counted}."), _from_left(row, segments)


def _from_left(row: Row, segments: list[Row]) -> list[MaskRef]:
    """Returns a mask per segment, sorted by the leftmost pixel, which the box gives, or else the PNG when decoded."""
    if all(segment.get("bbox") for segment in segments):
        return [segment_mask(row, one) for one in sorted(segments, key=lambda segment: float(segment["bbox"][0]))]
    ids = tuple(int(segment["id"]) for segment in segments)
    return [FromLeft(row["png"], ids, place) for place in range(len(ids))]
