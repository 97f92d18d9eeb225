"""A model with its tokenizer and sizes, in torch alone: what answers questions, and all that a model folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sail_lightning.encoding.transform import Encoder
from sail_lightning.image.preprocessing import MAX_SIDE
from sail_lightning.interfaces import Backbone, Dims, PromptEncoder, Upsampler, to_spec
from sail_lightning.model import contract
from sail_lightning.model.model import SailModel
from sail_lightning.sequence.tokenizer import SailTokenizer
from sail_lightning.settings.renames import renamed


@dataclass(frozen=True)
class ModelBundle:
    """A model without Lightning, teachers and training.

    `PixelSAIL` is made of one, and `pretrained.model_folder.open_bundle` opens one from a model folder.

    Args:
        model: The transformer with its heads; its weights exist after `build`.
        tokens: The tokenizer.
        max_side: Longest side of a resized image, in pixels.
        max_tokens: Longest sequence.
        max_new_tokens: Longest answer.
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
    ) -> ModelBundle:
        """Makes a bundle from plugins and those settings of `PixelSAIL` that a model folder holds.

        Raises:
            SailError: The tokenizer cannot be opened.
        """
        return cls(
            SailModel(backbone, upsampler, prompt_encoder, mask_channels),
            open_tokens(tokenizer, backbone, prompt_encoder),
            max_side,
            max_tokens,
            max_new_tokens,
        )

    def build(self) -> Dims:
        """Makes all weights; returns the sizes that the plugins published."""
        return self.model.build(len(self.tokens), len(self.tokens.added))

    @property
    def encoder(self) -> Encoder:
        """The encoder that lays samples out for this model, which is built."""
        model = self.model
        return make_encoder(
            model.backbone, model.prompt_encoder, self.tokens, model.dims.patch_size, self.max_side, self.max_tokens
        )

    def config(self, stored: bool = True) -> dict[str, Any]:
        """The arguments of `of` that make this bundle again, as a model folder holds them.

        Args:
            stored: The model is built, and its arguments need no file that it was made from.
        """
        model = self.model
        plugins = {"backbone": model.backbone, "upsampler": model.upsampler, "prompt_encoder": model.prompt_encoder}
        return {
            **to_spec(plugins, stored=stored),
            "tokenizer": self.tokens.source,
            "mask_channels": model.mask_channels,
            "max_side": self.max_side,
            "max_tokens": self.max_tokens,
            "max_new_tokens": self.max_new_tokens,
        }


def open_tokens(tokenizer: str, backbone: Backbone, prompt_encoder: PromptEncoder) -> SailTokenizer:
    """Opens the tokenizer of a model that has this backbone and prompt encoder.

    Raises:
        SailError: it cannot be opened.
    """
    return SailTokenizer(tokenizer, prompt_encoder.num_prompts, backbone.chat, backbone.image_layout)


def make_encoder(
    backbone: Backbone,
    prompt_encoder: PromptEncoder,
    tokens: SailTokenizer,
    patch_size: int,
    max_side: int,
    max_tokens: int,
) -> Encoder:
    """Makes the encoder of a model; the only place that does.

    Args:
        backbone: It decides how images are resized.
        prompt_encoder: It decides how prompts are laid on the patch grid.
        tokens: The tokenizer.
        patch_size: Pixels per vision token, as the built backbone published it.
        max_side: Longest side of a resized image, in pixels.
        max_tokens: Longest sequence.
    """
    return Encoder(
        tokens,
        patch_size,
        prompt_encoder.num_prompts,
        max_side,
        max_tokens,
        resize=backbone.resize_mode,
        overlap=prompt_encoder.overlap,
        coverage=prompt_encoder.rasterization,
    )


def encoder_without_weights(
    backbone: Backbone,
    prompt_encoder: PromptEncoder,
    tokenizer: str = "laboratory",
    max_side: int = MAX_SIDE,
    max_tokens: int = 8192,
) -> Encoder:
    """The encoder of a model that is not made: the backbone is built on the meta device, only to learn its patch size.

    Raises:
        SailError: the tokenizer or the backbone cannot be used here.
    """
    tokens = open_tokens(tokenizer, backbone, prompt_encoder)
    with torch.device("meta"):
        dims = contract.build(backbone, Dims(vocab_size=len(tokens), num_added_tokens=len(tokens.added)))
    return make_encoder(backbone, prompt_encoder, tokens, dims.patch_size, max_side, max_tokens)


__getattr__ = renamed(__name__, {"Network": "ModelBundle"})
