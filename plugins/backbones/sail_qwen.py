"""`SailQwen`: an encoder-free Qwen2-family decoder, as in SOLO and Pixel-SAIL.

The decoder is Hugging Face's `Qwen2_5_VLTextModel`, composed: our attention function is registered with it, and the
M-RoPE sections are [0, E/4, E/4] (fast frequencies turn with the height position, slow ones with the width), which is
bit-equal to the official formula.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextModel

from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Attention, Backbone, Dims, KeyValueCache
from sail_lightning.plan import AttentionPlan
from sail_lightning.plugins.attention import resolve
from sail_lightning.registry import register
from sail_lightning.vision import IMAGE_MEAN, IMAGE_STD

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


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    sail_attend: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    **_: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face's layers call: (B, H, S, E) in, (B, S, H, E) out; the kernel arrives as a keyword."""
    return sail_attend(query, key, value, scaling), None


# No mask function is registered under this name, so Hugging Face builds no mask either.
AttentionInterface.register("sail_lightning", _attend)


class _Rotary(Qwen2_5_VLRotaryEmbedding):
    """Keeps its frequencies float32 under `.bfloat16()`: rounded ones are off by 1 rad at position 1000."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Rotary:
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                self.register_buffer(name, buffer.to(moved.device), persistent=False)
        return self


@register
class SailQwen(Backbone):
    """The paper's single transformer.

    Args:
        size: preset; every other size below overrides it.
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
    """

    def __init__(
        self,
        size: Literal["tiny", "0.5b", "3b"] = "tiny",
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
    ) -> None:
        super().__init__()
        given = {
            "patch_size": patch_size,
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
        settings = PRESETS[size] | {key: value for key, value in given.items() if value is not None}
        heads, groups = settings["num_attention_heads"], settings["num_key_value_heads"]
        if settings["hidden_size"] % (4 * heads) or heads % groups:
            raise SailUsageError(
                f"SailQwen: hidden_size {settings['hidden_size']} must be divisible by 4 x num_heads ({heads}), "
                f"and num_heads by num_key_value_heads ({groups})"
            )
        self.settings = settings
        self.attention = resolve(attention)
        self.activation_checkpointing = activation_checkpointing

    pixel_scale: Tensor
    pixel_shift: Tensor

    def build(self, dims: Dims) -> Dims:
        settings = dict(self.settings)
        patch_size, theta = settings.pop("patch_size"), settings.pop("rope_theta")
        tied, embedding_range = settings.pop("tie_word_embeddings"), settings.pop("embedding_range")
        hidden = settings["hidden_size"]
        head_size = hidden // settings["num_attention_heads"]
        config = Qwen2_5_VLTextConfig(
            vocab_size=dims.vocab_size,
            max_position_embeddings=32768,
            rms_norm_eps=1e-6,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": theta,
                "mrope_section": [0, head_size // 4, head_size // 4],
            },
            use_sliding_window=False,
            bos_token_id=None,
            eos_token_id=None,
            **settings,
        )
        config._attn_implementation = "sail_lightning"
        self.attention.build(dims)
        self.model = Qwen2_5_VLTextModel(copy.deepcopy(config))
        self.model.rotary_emb = _Rotary(config)  # type: ignore[arg-type]  # annotated with the outer config
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        self.vis_embed = nn.Linear(3 * patch_size * patch_size, hidden, bias=False)
        self.lm_head = nn.Linear(hidden, dims.vocab_size, bias=False)
        nn.init.normal_(self.model.embed_tokens.weight, std=embedding_range)
        nn.init.normal_(self.vis_embed.weight, std=config.initializer_range)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        pixels = patch_size * patch_size
        mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
        self.register_buffer("pixel_scale", (1 / (255 * std)).repeat_interleave(pixels), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).repeat_interleave(pixels), persistent=False)
        return Dims(dims.vocab_size, hidden, patch_size)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids)

    def embed_patches(self, patches: Tensor) -> Tensor:
        weight = self.vis_embed.weight
        pixels = torch.addcmul(self.pixel_shift.float(), patches.float(), self.pixel_scale.float())
        return self.vis_embed(pixels.to(weight.dtype))

    def forward(self, embeddings: Tensor, positions: Tensor, plan: AttentionPlan) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
            return self.attention(*packed, plan, scale)[None]

        return self._run(embeddings[None], positions[:, None], sail_attend=attend)[0]

    def decode(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        mask = cache.mask()

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            groups = query.shape[1] // key.shape[1]
            if groups > 1 and query.is_cuda:  # SDPA on CUDA takes grouped heads with a mask only in its slowest kernel
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            out = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
            return out.transpose(1, 2)

        return self._run(embeddings, positions, sail_attend=attend, past_key_values=cache)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def _run(self, embeddings: Tensor, positions: Tensor, **kwargs: Any) -> Tensor:
        return self.model(inputs_embeds=embeddings, position_ids=positions, use_cache=False, **kwargs).last_hidden_state
