"""The synthetic laboratory as a data source."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sail_lightning.data.sources.base import Source
from sail_lightning.data.synthetic.laboratory import TASKS, Laboratory
from sail_lightning.errors import SailUsageError
from sail_lightning.registry import register
from sail_lightning.sample import Sample
from sail_lightning.settings.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt


@register
class LaboratorySource(Source):
    """Draws synthetic scenes with exact masks: endless for training, a fixed number for evaluation.

    Args:
        split: `train`, `val`, `test`, or `compositional` (pairs of shape and colour never seen in training).
        samples: Number of samples; null is endless. With a number, each sample has one question, and the tasks occur in
            exact proportion.
        seed: Seed of everything that is drawn.
        size: Side of the square images in pixels.
        min_objects: Smallest number of objects per scene.
        max_objects: Largest number of objects per scene.
        questions: Number of turns per sample of an endless source.
        tasks: Weight of each task; null is the laboratory's default.
        kinds: Weight of each kind of referring question; null is the laboratory's default.
        vres_kinds: Weight of each kind of question that refers by words and a region; null weights all alike.
        num_prompts: Number of ids of visual prompts, which run from 0 to num_prompts - 1.
        prompts: Weight of each form of a visual prompt (mask, box, point); null is the laboratory's default.

    Raises:
        SailUsageError: A setting is out of range, or names an unknown split, task or kind.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test", "compositional"] = "train",
        samples: PositiveInt | None = None,
        seed: NonNegativeInt = 0,
        size: PositiveInt = 64,
        min_objects: PositiveInt = 2,
        max_objects: PositiveInt = 5,
        questions: PositiveInt = 5,
        tasks: dict[str, NonNegativeFloat] | None = None,
        kinds: dict[str, NonNegativeFloat] | None = None,
        vres_kinds: dict[str, NonNegativeFloat] | None = None,
        num_prompts: PositiveInt = 4,
        prompts: dict[str, NonNegativeFloat] | None = None,
    ) -> None:
        try:
            laboratory = Laboratory(
                seed=seed,
                split=split,
                size=size,
                min_objects=min_objects,
                max_objects=max_objects,
                tasks=dict(TASKS if tasks is None else tasks),
                kinds=kinds,
                vres_kinds=vres_kinds,
                questions=questions,
                num_prompts=num_prompts,
                prompts=prompts,
            )
            self._list = laboratory if samples is None else laboratory.balanced(samples)
        except ValueError as error:
            raise SailUsageError(f"LaboratorySource: {error}") from None
        self._samples = samples

    def __getitem__(self, index: int) -> Sample:
        try:
            return self._list[index]
        except ValueError as error:  # no such scene exists, or none was found
            raise SailUsageError(f"LaboratorySource: {error}") from None

    @property
    def length(self) -> int | None:
        return self._samples

    def image_keys(self) -> NDArray[np.uint64]:
        return np.zeros(self._samples or 0, np.uint64)  # each sample has a scene of its own
