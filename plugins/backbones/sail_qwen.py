"""`SailQwen`: an encoder-free Qwen2-family decoder, as in SOLO, SAIL and Pixel-SAIL, in the sizes of the paper."""

from __future__ import annotations

from typing import Any, Literal

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Attention
from sail_lightning.plugins.backbones.decoder import SailDecoder
from sail_lightning.registry import register

PRESETS: dict[str, dict[str, Any]] = {
    # A laboratory model: pictures of 8 x 8 patches need rotary frequencies that turn within a few patches.
    "tiny": {
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rope_theta": 100.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.08,
        "embedding_range": 0.5,
    },
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
        size: preset; every other size below overrides it.
        pretrained: a local Hugging Face folder of Qwen2, Qwen2.5 or Qwen3, or of SOLO or SAIL style, to start from, in
            place of sizes; name it as the tokenizer too.
        config: the words of such a folder's config.json, in place of sizes (a stored model has them).
        attention: kernel, or `auto` for the best that runs here.
        patch_size: pixels per patch side.
        hidden_size: D.
        intermediate_size: of the gated MLP.
        num_layers: decoder layers.
        num_heads: query heads.
        num_key_value_heads: key and value heads.
        rope_theta: base of the rotary frequencies.
        tie_word_embeddings: whether the language head is the embedding table.
        initializer_range: standard deviation of initial matrices. A narrow model wants about 1 / sqrt(D).
        embedding_range: standard deviation of initial word embeddings. Visual prompts are made of them, so it sets
            how loud a prompt is beside the pixels (of unit variance) at the start.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        class_token: end a picture with `<|vis_cls|>`, which some SOLO models were trained with.
        compile_layers: compile each layer for training and packed reading; generation stays as it is.
        bidirectional: whether the tokens of a picture see each other wholly; else they look back only, as words do.
        grid_positions: whether a patch stands at its row and column (M-RoPE); else patches are counted one by one.
    """

    families = ("qwen2", "qwen3")

    def __init__(
        self,
        size: Literal["tiny", "0.5b", "3b"] = "tiny",
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        attention: Attention | Literal["auto"] = "auto",
        patch_size: int | None = None,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        num_key_value_heads: int | None = None,
        rope_theta: float | None = None,
        tie_word_embeddings: bool | None = None,
        initializer_range: float | None = None,
        embedding_range: float | None = None,
        activation_checkpointing: bool = False,
        class_token: bool = False,
        compile_layers: bool = False,
        bidirectional: bool = True,
        grid_positions: bool = True,
    ) -> None:
        given = {
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "rope_theta": rope_theta,
            "tie_word_embeddings": tie_word_embeddings,
            "initializer_range": initializer_range,
            "embedding_range": embedding_range,
        }
        given = {key: value for key, value in given.items() if value is not None}
        embedding = None
        if pretrained is not None or config is not None:
            if given:
                raise SailUsageError(f"SailQwen: {next(iter(given))} is a pretrained decoder's own; leave it out")
        else:
            config = PRESETS[size] | given
            own = config.pop("patch_size")
            patch_size = patch_size or own
            embedding = config.pop("embedding_range")
            config = {"model_type": "qwen2", **config}
            heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
            if config["hidden_size"] % (4 * heads) or heads % groups:
                raise SailUsageError(
                    f"SailQwen: hidden_size {config['hidden_size']} must be divisible by 4 x num_heads ({heads}), "
                    f"and num_heads by num_key_value_heads ({groups})"
                )
        patch_range = None if config is None else config.get("initializer_range")
        super().__init__(
            pretrained,
            config,
            attention,
            patch_size,
            patch_range,
            activation_checkpointing,
            class_token,
            compile_layers,
            bidirectional,
            grid_positions,
        )
        self.embedding_range = embedding
