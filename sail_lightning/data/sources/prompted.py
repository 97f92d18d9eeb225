"""What sources of visual prompts share: how many objects are asked about, and how they are pointed at."""

from __future__ import annotations

from typing import Any

from sail_lightning.data.prompting import Prompting, Shape
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.settings.ranges import NonNegativeFloat, PositiveInt, UnitInterval


class PromptedSource(IndexedSource):
    """A source whose objects are asked about by visual prompts. It stands before the class that reads the files.

    Args:
        objects: most per conversation.
        num_prompts: ids that prompts carry, 0 to num_prompts - 1.
        shapes: how often a prompt is a `mask`, `box`, `point` or `scribble`; null is always the mask.
        absent: probability, per object, of a question about a prompt that is not there, once at most.
        kwargs: arguments of the class that reads the files.
    """

    def __init__(
        self,
        *,
        objects: PositiveInt = 5,
        num_prompts: PositiveInt = 15,
        shapes: dict[Shape, NonNegativeFloat] | None = None,
        absent: UnitInterval = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompting = Prompting(objects, num_prompts, shapes, absent)
