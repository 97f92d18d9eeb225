"""A network with its words and sizes, in torch alone: what answers questions, and all that a model folder holds."""

from __future__ import annotations

from dataclasses import dataclass

from sail_lightning.encoding.transform import Encoder
from sail_lightning.image.preprocessing import MAX_SIDE
from sail_lightning.interfaces import Backbone, Dims, PromptEncoder, Upsampler
from sail_lightning.model.model import SailModel
from sail_lightning.sequence.tokenizer import SailTokenizer


@dataclass(frozen=True)
class Network:
    """Without Lightning, teachers and training: `PixelSAIL` is made of one, `checkpoint.open_network` opens one.

    `max_side` is of resized pictures in pixels, `max_tokens` of sequences, `max_new_tokens` of answers.
    """

    model: SailModel
    tokens: SailTokenizer
    max_side: int
    max_tokens: int
    max_new_tokens: int

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        upsampler: Upsampler,
        prompt_encoder: PromptEncoder,
        tokenizer: str = "laboratory",
        mask_channels: int = 256,
        max_side: int = MAX_SIDE,
        max_tokens: int = 8192,
        max_new_tokens: int = 128,
    ) -> Network:
        """From plugins and settings, those of `PixelSAIL` that a model folder holds. Weights exist after `build`.

        Raises:
            SailError: the tokenizer cannot be opened.
        """
        return cls(
            SailModel(backbone, upsampler, prompt_encoder, mask_channels),
            SailTokenizer(tokenizer, prompt_encoder.num_prompts, backbone.chat, backbone.image_layout),
            max_side,
            max_tokens,
            max_new_tokens,
        )

    def build(self) -> Dims:
        """Makes all weights; returns what the plugins published."""
        return self.model.build(len(self.tokens), len(self.tokens.added))

    @property
    def encoder(self) -> Encoder:
        """Encodes samples as the model, which is built, reads them."""
        return Encoder(
            self.tokens,
            self.model.dims.patch_size,
            self.model.prompt_encoder.num_prompts,
            self.max_side,
            self.max_tokens,
            resize=self.model.backbone.resize_mode,
            overlap=self.model.prompt_encoder.overlap,
            coverage=self.model.prompt_encoder.rasterization,
        )
