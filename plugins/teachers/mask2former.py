"""Mask2Former's pixel decoder as a teacher of mask features: the paper's first expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sail_lightning.image.resizing import mask2former_size
from sail_lightning.plugins.teachers import hugging_face
from sail_lightning.plugins.teachers.frozen import FrozenTeacher, StudentFeatures
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt
from sail_lightning.settings.renames import renamed

SHORTER = 800
"""Shorter side in pixels that the published models were trained with."""


@register
class Mask2FormerTeacher(FrozenTeacher):
    """The last features of Mask2Former's pixel decoder, of stride 4 and 256 channels (paper, section 3.2).

    The official recipe uses Swin-L of COCO panoptic segmentation, with weight 0.5 together with `SAM2Teacher` or 1.0
    alone. Only the backbone and the pixel decoder are kept.

    Args:
        folder: a local Hugging Face folder, such as a copy of `facebook/mask2former-swin-large-coco-panoptic`.
        student_features: student features that it teaches, `vision` tokens or upsampled `mask` features.
        resize: shorter side in pixels that images are resized to; the longer side is at most 1.67 times as long. None
            is the size of the folder's image processor, or 800.
        kwargs: arguments of `FrozenTeacher`.
    """

    def __init__(
        self,
        folder: str,
        student_features: StudentFeatures = "mask",
        *,
        resize: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student_features, **kwargs)
        self.folder, self.resize = folder, resize
        self.side = resize or SHORTER

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the backbone and the pixel decoder.

        Raises:
            SailError: no Mask2Former folder, or weights that are missing, foreign or misshapen.
        """
        from transformers import Mask2FormerModel

        who = type(self).__name__
        hugging_face.settings(who, self.folder, ("mask2former",))
        # The segmentation model around it has a head for classes, and its loss.
        whole = hugging_face.load(who, self.folder, Mask2FormerModel, r"(class_predictor|criterion)\.")
        self.network = whole.pixel_level_module
        self.channels = int(whole.config.mask_feature_size)
        self.side = self.resize or hugging_face.shorter_side(who, self.folder) or SHORTER
        return hugging_face.statistics(who, self.folder)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return mask2former_size(size, self.side)

    def look(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.network(pixels).decoder_last_hidden_state
        return features


__getattr__ = renamed(__name__, {"input_size": "sail_lightning.image.resizing:mask2former_size"})
