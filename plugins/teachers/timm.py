"""Any of timm's image models as a teacher."""

from __future__ import annotations

import logging
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.interfaces import Dims, Teacher
from sail_lightning.plugins import timm_models
from sail_lightning.registry import register

logger = logging.getLogger(__name__)


@register
class TimmTeacher(Teacher):
    """The features of one layer of a timm model, with the model's own input size and normalisation.

    Nothing is downloaded: weights come from a file, or are random (a control: what does distillation of structure
    without knowledge give?), of which a warning is logged.

    Args:
        model: timm's name, such as `vit_small_patch14_dinov2.lvd142m`; any model with `features_only`.
        weights: a local `.safetensors`, `.pth` or `.npz` file; None is a random initialisation from `seed`.
        tap: the student features it teaches, `vision` tokens or upsampled `mask` features.
        weight: of its loss.
        resize: side in pixels of the square that images are resized to; None is the model's own input size. The whole
            image is kept, so features still lie at the same relative places.
        layer: which of the model's feature maps; -1 is the last, deepest one.
        seed: of the random initialisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        tap: Literal["vision", "mask"] = "vision",
        weight: float = 1.0,
        resize: int | None = None,
        layer: int = -1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.name = model
        self.weights = weights
        self.tap = tap
        self.weight = weight
        self.resize = resize
        self.layer = layer
        self.seed = seed

    def build(self, dims: Dims) -> Dims:
        """Makes the model, frozen, and learns its `channels`.

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
        mean, std = timm_models.statistics(self.network)
        self.register_buffer("mean", 255 * torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.channels = timm_models.channels(self.network)
        self.requires_grad_(False)
        self.eval()
        return dims

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8, RGB, to features (B, channels, h, w)."""
        pixels = images.float()
        if pixels.shape[-2:] != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", align_corners=False, antialias=True)
        return timm_models.feature_map(self.network, (pixels - self.mean) / self.std)

    def train(self, mode: bool = True) -> TimmTeacher:
        """A teacher stays in evaluation mode, whatever its surroundings do."""
        return super().train(False)
