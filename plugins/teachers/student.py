"""A Pixel-SAIL model as the teacher of another one: an expert that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sail_lightning.encoding.collate import pack
from sail_lightning.encoding.transform import EncodedSample
from sail_lightning.image.preprocessing import resized_size
from sail_lightning.model.model import SailModel
from sail_lightning.plugins.teachers.frozen import FrozenTeacher, StudentFeatures
from sail_lightning.pretrained.model_folder import open_bundle
from sail_lightning.registry import register
from sail_lightning.sample import Sample


@register
class StudentTeacher(FrozenTeacher):
    """The features of a trained Pixel-SAIL: its vision tokens after the last norm, or its upsampled mask features.

    Images come before any text in the sequence, so the features do not depend on the question.

    Args:
        folder: a model folder, or the name of a packaged model (`sail-tiny`).
        student_features: student features that it teaches with its own of the same kind: `vision` tokens or upsampled
            `mask` features.
        kwargs: arguments of `FrozenTeacher`.
    """

    network: SailModel

    def __init__(self, folder: str, student_features: StudentFeatures = "mask", **kwargs: Any) -> None:
        super().__init__(student_features, **kwargs)
        self.folder = folder

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the model.

        Raises:
            SailError: no such folder, a file is missing or damaged, or names or shapes of weights do not agree.
            SailUsageError: it needs a plugin that is not loaded.
        """
        opened = open_bundle(self.folder)
        self.network, self.encoder = opened.model, opened.encoder
        self.channels = (
            self.network.dims.hidden_size if self.student_features == "vision" else self.network.mask_channels
        )
        return (0.0, 0.0, 0.0), (1 / 255,) * 3  # it normalises patches itself

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return resized_size(size, self.encoder.patch_size, self.encoder.max_side, self.encoder.resize)

    def look(self, pixels: Tensor) -> Tensor:
        patch = self.encoder.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        cells = pixels.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
        none = np.empty(0, np.int64)
        one = EncodedSample(
            sample=Sample(None, ()),
            sequence=self.encoder.lay_out((), ((rows, columns),)),
            patches=np.empty((0, 3 * patch**2), np.uint8),
            image_size=None,
            regions=(),
            seg_rows=none,
            masks=(),
            target_weight=1.0,
        )
        batch = replace(
            pack([one] * len(pixels)).to(pixels.device),
            patches=cells.reshape(-1, 3 * patch**2).round().to(torch.uint8),
        )
        output = self.network(batch, {self.student_features})
        (group,) = output.vision if self.student_features == "vision" else output.mask
        maps: Tensor = group.maps
        return maps
