"""How transformers' decoders call attention and KV caches: what `sail_lightning.compat.transformers` relies on."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sail_lightning.compat import transformers as compat
from sail_lightning.errors import SailError
from sail_lightning.interfaces import CacheView, KeyValueCache
from sail_lightning.plugins.backbones.core import NAME, build_decoder, decoder_config

VERSION = f"transformers {transformers.__version__}"
KINDS = ("qwen2", "qwen3", "llama")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


class Seen(KeyValueCache):
    """Remembers which layers handed over what, and returns it unchanged."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.calls.append((layer, tuple(key.shape), tuple(value.shape)))
        return key, value

    def views(self) -> Sequence[CacheView]:
        return ()


def decoder(kind: str) -> Any:
    return build_decoder(decoder_config({"model_type": kind, **SIZES}, vocab_size=16)).eval()


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


def read(core: Any, cache: KeyValueCache | None = None, attend: Any = causal) -> Tensor:
    embeddings = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(5).expand(3, 1, -1)
    with torch.no_grad():
        return compat.read_embeddings(core, embeddings, positions, cache, sail_attend=attend)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_hands_its_keys_and_values_to_our_cache_once(kind: str) -> None:
    core, cache = decoder(kind), Seen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an argument that is about to be renamed
        cached = read(core, cache)
    assert cache.calls == [(layer, (1, 2, 5, 8), (1, 2, 5, 8)) for layer in range(3)], VERSION
    assert torch.equal(cached, read(core)), VERSION


@pytest.mark.parametrize("words", [{}, {"kwargs": {}}, {"cache_kwargs": {}}], ids=["5.23", "5.24", "4"])
def test_our_cache_takes_the_call_of_every_version(words: dict[str, Any]) -> None:
    cache = Seen()
    key = torch.zeros(1, 2, 5, 8)
    compat.LayerCache(cache).update(key, key, 7, **words)
    assert cache.calls == [(7, (1, 2, 5, 8), (1, 2, 5, 8))]


def test_a_decoder_that_takes_no_cache_is_refused_by_name() -> None:
    class Strange(nn.Module):
        def forward(self, inputs_embeds: Tensor) -> Tensor:
            return inputs_embeds

    with pytest.raises(SailError, match="Strange of transformers .* takes no KV cache that we know"):
        compat.cache_keyword(Strange)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_call_our_attention_with_a_scale_and_our_keyword_and_build_no_mask(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, float]] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **words: Any
    ) -> tuple[Tensor, None]:
        calls.append((mask, scaling))
        return words["sail_attend"](query, key, value, scaling), None

    name = f"{NAME}_probe"
    compat.register_attention(name, attention)
    core = decoder(kind)
    with compat.attention_of(core.config, name):
        read(core)
    assert calls == [(None, pytest.approx(8**-0.5))] * 3, VERSION
    assert core.config._attn_implementation == NAME


def test_rotary_embeddings_hold_frequencies_and_a_scale() -> None:
    rotary = compat.Qwen2RotaryEmbedding(decoder("qwen2").config)
    assert rotary.inv_freq.shape == (4,) and rotary.attention_scaling == 1.0, VERSION
    cos, sin = rotary(torch.zeros(1, 5, 32), torch.arange(5)[None])
    assert cos.shape == sin.shape == (1, 5, 8), VERSION


@pytest.mark.parametrize(
    ("part", "parameters"),
    [
        (compat.Qwen2MLP, ["config"]),
        (compat.Qwen2RMSNorm, ["hidden_size", "eps"]),
        (compat.Qwen2RotaryEmbedding, ["config"]),
        (compat.apply_rotary_pos_emb, ["q", "k", "cos", "sin"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_of_qwen2_take_the_arguments_that_we_give(part: Any, parameters: list[str]) -> None:
    assert list(inspect.signature(part).parameters)[: len(parameters)] == parameters, VERSION


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_recomputes_layers_without_a_warning(kind: str) -> None:
    core = decoder(kind).train()
    core.activation_checkpointing_enable()
    embeddings = torch.randn(1, 5, 32, requires_grad=True)
    calls = 0

    def counting(*args: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return causal(*args)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = compat.read_embeddings(core, embeddings, torch.arange(5).expand(3, 1, -1), sail_attend=counting)
        out.sum().backward()
    assert calls == 2 * 3, VERSION
