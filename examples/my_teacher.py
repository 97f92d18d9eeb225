"""Teaches mask features where the edges of an image are: a whole teacher, without a network."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sail_lightning.interfaces import Dims
from sail_lightning.plugins.teachers.frozen import ScheduledTeacher, StudentFeatures
from sail_lightning.registry import register


@register
class MyTeacher(ScheduledTeacher):
    """Horizontal and vertical gradients of the grey image, averaged over 4 x 4 pixels."""

    def __init__(self, student_features: StudentFeatures = "mask", **kwargs: Any) -> None:
        super().__init__(student_features, **kwargs)

    def build(self, dims: Dims) -> Dims:
        self.channels = 2
        return dims

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, 3, height, width) uint8 to features (B, 2, h, w)."""
        grey = images.float().mean(1, keepdim=True) / 255
        edges = [F.pad(grey.diff(dim=3), (0, 1)), F.pad(grey.diff(dim=2), (0, 0, 0, 1))]
        return F.avg_pool2d(torch.cat(edges, 1), 4)
