"""Undocumented conventions of transformers: how its decoder layers call attention and KV caches, and the parts of
Qwen2."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import transformers
from torch import Tensor
from transformers import AttentionInterface, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)

from sail_lightning.errors import SailError

__all__ = [
    "GradientCheckpointingLayer",
    "LayerCache",
    "Qwen2MLP",
    "Qwen2PreTrainedModel",
    "Qwen2RMSNorm",
    "Qwen2RotaryEmbedding",
    "apply_rotary_pos_emb",
    "attention_of",
    "cache_keyword",
    "read_embeddings",
    "register_attention",
    "use_attention",
]

CACHE_KEYWORDS = ("cache", "past_key_values")
"""The argument of a decoder that takes the KV cache: the name since transformers 5.24, and the name before."""


class KeysAndValues(Protocol):
    """The interface of a KV cache that this module requires; `interfaces.KeyValueCache` has it."""

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]: ...


class LayerCache:
    """This package's KV cache in the form that transformers' decoder layers call.

    A layer passes its keys, its values and its index. Further arguments (none up to transformers 5.23, `kwargs` since
    5.24) tell the library's own caches where tokens belong; this cache knows that from its plan and ignores them.
    """

    def __init__(self, cache: KeysAndValues) -> None:
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Stores a layer's keys and values (1, G, T, E), and returns those that attention reads."""
        return self._cache.update(key, value, layer)


def cache_keyword(decoder: type) -> str:
    """Returns the name of the argument by which a class of decoders takes its KV cache.

    Raises:
        SailError: It has no argument of a known name.
    """
    parameters = inspect.signature(decoder.forward).parameters  # type: ignore[attr-defined]
    for name in CACHE_KEYWORDS:
        if name in parameters:
            return name
    raise SailError(
        f"{decoder.__name__} of transformers {transformers.__version__} takes no KV cache that we know "
        f"({' or '.join(CACHE_KEYWORDS)}); install a version within the range of sail-lightning"
    )


def read_embeddings(
    decoder: Any, embeddings: Tensor, positions: Tensor, cache: KeysAndValues | None = None, **for_attention: Any
) -> Tensor:
    """Runs a decoder's layers and final norm.

    Args:
        decoder: A model of transformers without its language head.
        embeddings: Embeddings (B, L, D).
        positions: Positions in the form that its rotary embedding takes.
        cache: Gets each layer's keys and values, and returns those that attention reads.
        for_attention: Keyword arguments of the registered attention function.

    Returns:
        Hidden states (B, L, D).
    """
    caching = {} if cache is None else {cache_keyword(type(decoder)): LayerCache(cache)}
    output = decoder(inputs_embeds=embeddings, position_ids=positions, use_cache=False, **caching, **for_attention)
    hidden: Tensor = output.last_hidden_state
    return hidden


def register_attention(name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Registers an attention function in transformers under a name.

    Layers call it with (module, query, key, value, mask) and keyword arguments. No mask function is registered under
    the name, so the library builds no mask.
    """
    AttentionInterface.register(name, function)


def use_attention(config: PretrainedConfig, name: str) -> None:
    """Sets the attention function of the decoders that are made from a config."""
    config._attn_implementation = name


@contextmanager
def attention_of(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Makes decoders of this config use another attention function within this context."""
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
