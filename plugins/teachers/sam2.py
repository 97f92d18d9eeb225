"""SAM 2's image encoder as a teacher of vision tokens: the paper's second expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sail_lightning.plugins.teachers import hugging_face
from sail_lightning.plugins.teachers.frozen import FrozenTeacher
from sail_lightning.registry import register


@register
class SAM2Teacher(FrozenTeacher):
    """SAM 2's image embedding, the input of its mask decoder, of stride 16 and 256 channels (paper, section 3.2).

    The official recipe uses SAM 2.1 Hiera-L, with weight 0.5 together with `Mask2FormerTeacher` or 1.0 alone. Only the
    vision encoder and the "no memory" embedding are kept.

    Args:
        folder: a local Hugging Face folder, such as a copy of `facebook/sam2.1-hiera-large`.
        kwargs: arguments of `FrozenTeacher`.
    """

    def __init__(self, folder: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder

    def load(self) -> tuple[Sequence[float], Sequence[float]]:
        """Makes the vision encoder.

        Raises:
            SailError: no SAM 2 folder, or weights that are missing, foreign or misshapen.
        """
        from transformers import Sam2Model

        who = type(self).__name__
        hugging_face.settings(who, self.folder, ("sam2", "sam2_video"))
        self.network = whole = hugging_face.load(who, self.folder, Sam2Model)
        del whole.prompt_encoder, whole.mask_decoder, whole.shared_image_embedding
        # Images are squares of the size that its grid of embeddings was made for: 1024 pixels (official).
        height, width = whole.config.vision_config.backbone_config.image_size
        self.size = (int(height), int(width))
        self.channels = int(whole.config.vision_config.fpn_hidden_size)
        return hugging_face.statistics(who, self.folder)

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size

    def look(self, pixels: Tensor) -> Tensor:
        # As `Sam2Model.get_image_embeddings`, without the finer maps, which it puts through the mask decoder.
        features: Tensor = self.network.vision_encoder(pixels).fpn_hidden_states[-1]
        return features + self.network.no_memory_embedding.view(1, -1, 1, 1)
