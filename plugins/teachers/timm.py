"""Any image model of timm as a teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sail_lightning.plugins import timm_models
from sail_lightning.plugins.teachers.frozen import FrozenTeacher
from sail_lightning.registry import register
from sail_lightning.settings.ranges import NonNegativeInt, PositiveInt

logger = logging.getLogger(__name__)


@register
class TimmTeacher(FrozenTeacher):
    """The features of one layer of a timm model, with the model's own input size and normalisation.

    Nothing is downloaded: weights come from a file, or are random, which is logged as a warning. Random weights are a
    control: what does a teacher without knowledge give?

    Args:
        model: timm's name of the model, such as `vit_small_patch14_dinov2.lvd142m`; any model with `features_only`.
        weights: a local `.safetensors`, `.pth` or `.npz` file; None is a random initialisation from `seed`.
        resize: side in pixels of the square that images are resized to; None is the model's own input size. The whole
            image is kept, so features still lie at the same relative places.
        layer: which of the model's feature maps; -1 is the last, deepest one.
        seed: seed of the random initialisation.
        kwargs: arguments of `FrozenTeacher`.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        *,
        resize: PositiveInt | None = None,
        layer: int = -1,
        seed: NonNegativeInt = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = model
        self.weights = weights
        self.resize = resize
        self.layer = layer
        self.seed = seed

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the model.

        Raises:
            SailUsageError: timm has no such model, or it has no such layer.
            SailError: the weights file is missing, or does not fit the model.
        """
        self.network = timm_models.create(
            "TimmTeacher", self.name, self.layer, self.weights, self.seed, input_size=self.resize
        )
        if self.weights is None:
            logger.warning("TimmTeacher %s has no weights file: it is random, with seed %d", self.name, self.seed)
        self.size = (self.resize, self.resize) if self.resize else timm_models.own_size(self.network)
        self.channels = timm_models.channels(self.network)
        return timm_models.statistics(self.network)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size

    def look(self, pixels: Tensor) -> Tensor:
        return timm_models.feature_map(self.network, pixels)
