"""Base of sources of visual prompts: number of objects per conversation, and forms of the prompts."""

from __future__ import annotations

from typing import Any

from sail_lightning.data.prompting import Prompting, Shape
from sail_lightning.data.sources.indexed import IndexedSource
from sail_lightning.settings.ranges import NonNegativeFloat, PositiveInt, UnitInterval


class PromptedSource(IndexedSource):
    """Base of sources that ask about objects by visual prompts; listed before the class that reads the files.

    Args:
        objects: Largest number of objects per conversation.
        num_prompts: Number of prompt ids, which run from 0 to num_prompts - 1.
        shapes: Weights of the prompt forms `mask`, `box`, `point` and `scribble`; null always uses the mask.
        absent: Probability, per object, of a question about an absent prompt; there is one at most.
        kwargs: Arguments of the class that reads the files.
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
