"""A Pixel-SAIL model as a teacher of another one: an expert that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sail_lightning.data.sample import Sample
from sail_lightning.plugins.teachers.frozen import DType, FrozenTeacher, Tap
from sail_lightning.registry import register
from sail_lightning.vision import resized_size

if TYPE_CHECKING:
    from sail_lightning.module import PixelSAIL


@register
class StudentTeacher(FrozenTeacher):
    """What a trained Pixel-SAIL sees: its vision tokens after the last norm, or its upsampled mask features.

    Pictures are read before any words, so what was asked about them does not matter.

    Args:
        folder: a model folder, or the name of a packaged model (`sail-tiny`).
        tap: which of its features, and the student's features that they teach: `vision` tokens or `mask` features.
        weight: of its loss.
        dtype: that it computes in.
        every: it teaches in every so many optimiser steps, with as many times the weight.
        tasks: it teaches pictures of samples with a turn of one of these tasks; None: all.
    """

    network: PixelSAIL

    def __init__(
        self,
        folder: str,
        tap: Tap = "mask",
        weight: float = 1.0,
        dtype: DType = "float32",
        every: int = 1,
        tasks: list[str] | None = None,
    ) -> None:
        super().__init__(tap, weight, dtype, every, tasks)
        self.folder = folder

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the model.

        Raises:
            SailError: no such folder, a file is missing or damaged, or names or shapes of weights do not agree.
            SailUsageError: it needs a plugin that is not loaded.
        """
        from sail_lightning.module import PixelSAIL  # which knows the sockets, and so this module

        self.network = PixelSAIL.from_pretrained(self.folder)
        model = self.network.model
        self.channels = model.dims.hidden_size if self.tap == "vision" else model.mask_channels
        return (0.0, 0.0, 0.0), (1 / 255,) * 3  # it normalises patches itself

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        encoder = self.network.encoder
        return resized_size(size, encoder.patch_size, encoder.max_side, encoder.resize)

    def look(self, pixels: Tensor) -> Tensor:
        from sail_lightning.data.collate import pack
        from sail_lightning.data.transform import EncodedSample

        model, encoder, patch = self.network.model, self.network.encoder, self.network.model.dims.patch_size
        rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        cells = pixels.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
        none = np.empty(0, np.int64)
        one = EncodedSample(
            sample=Sample(None, ()),
            sequence=encoder.lay_out((), ((rows, columns),)),
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
        output = model(batch, {self.tap})
        (group,) = output.vision if self.tap == "vision" else output.mask
        maps: Tensor = group.maps
        return maps
