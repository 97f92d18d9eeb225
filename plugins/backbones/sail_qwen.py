"""`SailQwen`: an encoder-free Qwen2-family decoder, as in SOLO, SAIL and Pixel-SAIL, in the sizes of the paper."""

from __future__ import annotations

from typing import Any, Literal

from sail_lightning.plugins.backbones.core import LABORATORY
from sail_lightning.plugins.backbones.decoder import SailDecoder
from sail_lightning.registry import register
from sail_lightning.settings.ranges import PositiveInt

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"patch_size": 8, **LABORATORY},
    "0.5b": {
        "patch_size": 16,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "embedding_range": 0.02,
    },
    "3b": {
        "patch_size": 16,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "embedding_range": 0.02,
    },
}
"""Sizes of the Qwen2.5 family (0.5B and 3B) and of the laboratory model."""


@register
class SailQwen(SailDecoder):
    """The paper's single transformer.

    Args:
        size: preset of sizes; sizes that are given override it.
        pretrained: a local Hugging Face folder of Qwen2, Qwen2.5 or Qwen3, or of SOLO or SAIL style, to start from, in
            place of a preset; name it as the tokenizer too.
        config: the keys of such a folder's config.json, in place of a preset (a stored model has them).
        patch_size: pixels per patch side; None is the preset's, the folder's, or 16.
        kwargs: arguments of `SailDecoder`.
    """

    families = ("qwen2", "qwen3")

    def __init__(
        self,
        size: Literal["tiny", "0.5b", "3b"] = "tiny",
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        *,
        patch_size: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        preset = dict(PRESETS[size]) if pretrained is None and config is None else {}
        own_patch, own_embedding = preset.pop("patch_size", None), preset.pop("embedding_range", None)
        super().__init__(
            pretrained,
            {"model_type": "qwen2", **preset} if preset else config,
            patch_size=patch_size or own_patch,
            patch_range=None,
            **kwargs,
        )
        if preset:
            self.check_heads(self.settings, 4)
        self.embedding_range = self.embedding_range or own_embedding
        self.patch_range = self.settings.get("initializer_range")  # None for a folder: its config is not read yet
