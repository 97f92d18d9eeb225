"""Parts of backbones: a Hugging Face decoder with our attention and rotary positions, and pixels on the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, PretrainedConfig

from sail_lightning.compat.torch import Float32Buffers, allow_graphs, is_compiled
from sail_lightning.compat.transformers import register_attention, use_attention
from sail_lightning.errors import SailUsageError
from sail_lightning.interfaces import Attention, Backbone, KeyValueCache
from sail_lightning.model import contract
from sail_lightning.plugins.attention import resolve
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.settings.ranges import PositiveFloat, PositiveInt
from sail_lightning.settings.renames import renamed

NAME = "sail_lightning"
"""Name of our attention function in Hugging Face's registry, where it has no mask function: no mask is built."""

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Query (B, H, S, E), key and value (B, G, L, E), scale; to (B, S, H, E)."""


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float,
    sail_attend: Attend,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function that Hugging Face's layers call; the kernel arrives as a keyword."""
    return sail_attend(query, key, value, scaling), None


register_attention(NAME, _attend)


@dataclass(frozen=True, eq=False)
class PackedAttention:
    """Attention over one packed row, B = 1. Compiled layers trace through it, into the kernel and the plan."""

    kernel: Attention
    plan: AttentionPlan

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        output = self.kernel(query, key, value, self.plan, scale)
        return contract.expect(output, self.kernel, "forward", query.shape, "(T, H, E)")[None]


COMPILER = "inductor"
"""Backend of `torch.compile` for layers."""
GRAPHS = 64
"""Smallest limit on the forms of a batch that layers are compiled for; torch's own limit of 8 is soon reached."""


def compile_layers(layers: Iterable[Any]) -> None:
    """Compiles each layer in place, unless it is compiled; parameters keep their names. The first call traces it.

    All lengths are dynamic, and layers share their graphs: there is one for each form of a batch (the kinds of calls in
    its plan), dtype and gradient mode.
    """
    allow_graphs(GRAPHS)
    for layer in layers:
        if not is_compiled(layer):
            layer.compile(backend=COMPILER, dynamic=True)


def cached_attention(cache: KeyValueCache) -> Attend:
    """Returns the attention of T new tokens, B = 1, over the rows of a cache, as its views describe it.

    The heads that share a key are folded into the query axis, so keys and values are read in place, once for all
    questions of a row: nothing is repeated, and the kernel needs no support for grouped heads.
    """
    views = cache.views()
    biases: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        heads = query.shape[1] // key.shape[1]
        if not biases:  # made once for all layers; a bool mask would be turned into this in each
            for view in views:
                bias = torch.zeros_like(view.mask, dtype=value.dtype).masked_fill_(~view.mask, -torch.inf)
                biases.append(bias[:, None].repeat(1, 1, heads, 1))
        tokens = query[0].transpose(0, 1).to(value.dtype)  # autocast leaves them in float32
        outputs = []
        for view, bias, own in zip(views, biases, tokens.split([view.count for view in views]), strict=True):
            rows, width, length = view.mask.shape
            index = view.scatter_index
            grid = own
            if index is not None:
                grid = own.new_zeros(rows * width, *own.shape[1:]).index_copy_(0, index, own)
            grid = grid.unflatten(1, (-1, heads)).unflatten(0, (rows, width)).permute(0, 2, 3, 1, 4)
            keys, values = (slots[view.first : view.first + rows, :, :length] for slots in (key, value))
            out = nn.functional.scaled_dot_product_attention(
                grid.flatten(2, 3), keys, values, attn_mask=bias, scale=scale
            )
            out = out.unflatten(2, (heads, width)).permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)
            outputs.append(out if index is None else out.index_select(0, index))
        return torch.cat(outputs)[None]

    return attend


SIZES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}
"""Sizes of a decoder: our names to the keys of a Hugging Face `config.json`."""


LABORATORY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rope_theta": 100.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.08,
    "embedding_range": 0.5,
}
"""Sizes of the laboratory model: images of few patches need rotary frequencies with periods of a few patches."""


class DecoderBackbone(Backbone):
    """A backbone around a Hugging Face decoder: its kernel, its sizes, and options that save memory and time.

    Args:
        attention: attention kernel, or `auto` for the best one that runs here.
        hidden_size: width D of the hidden states.
        intermediate_size: width of the gated MLP.
        num_layers: number of decoder layers.
        num_heads: number of query heads.
        num_key_value_heads: number of key and value heads.
        rope_theta: base of the rotary frequencies.
        rms_norm_eps: epsilon of the norms.
        tie_word_embeddings: whether the language head is the embedding table.
        initializer_range: standard deviation of initial matrices and kernels; about 1 / sqrt(D) suits a narrow model.
        embedding_range: standard deviation of initial token embeddings. Visual prompts are made of them, so it sets
            the norm of a prompt relative to the pixels (of unit variance) at the start.
        activation_checkpointing: recompute each layer in the backward pass to save memory.
        compile_layers: compile each layer for training and prefill; decoding is not compiled.
    """

    def __init__(
        self,
        *,
        attention: Attention | Literal["auto"] = "auto",
        hidden_size: PositiveInt | None = None,
        intermediate_size: PositiveInt | None = None,
        num_layers: PositiveInt | None = None,
        num_heads: PositiveInt | None = None,
        num_key_value_heads: PositiveInt | None = None,
        rope_theta: PositiveFloat | None = None,
        rms_norm_eps: PositiveFloat | None = None,
        tie_word_embeddings: bool | None = None,
        initializer_range: PositiveFloat | None = None,
        embedding_range: PositiveFloat | None = None,
        activation_checkpointing: bool = False,
        compile_layers: bool = False,
    ) -> None:
        super().__init__()
        self.attention = resolve(attention)
        given = (
            *(hidden_size, intermediate_size, num_layers, num_heads, num_key_value_heads),
            *(rope_theta, rms_norm_eps, tie_word_embeddings, initializer_range),
        )
        self.sizes = {name: size for name, size in zip(SIZES, given, strict=True) if size is not None}
        """The sizes that were given, by our names."""
        self.embedding_range = embedding_range
        self.activation_checkpointing = activation_checkpointing
        self.compile_layers = compile_layers

    def with_sizes(self, config: dict[str, Any]) -> dict[str, Any]:
        """Returns the keys of a config.json with the sizes that were given in place of its own."""
        return config | {SIZES[name]: size for name, size in self.sizes.items()}

    def check_heads(self, config: dict[str, Any], multiple: int) -> None:
        """Checks that the sizes in the keys of a config.json fit together.

        Raises:
            SailUsageError: the hidden size is not divisible by `multiple` x heads, or the heads by their groups.
        """
        hidden, heads, groups = (config[SIZES[key]] for key in ("hidden_size", "num_heads", "num_key_value_heads"))
        if hidden % (multiple * heads) or heads % groups:
            raise SailUsageError(
                f"{type(self).__name__}: hidden_size {hidden} must be divisible by {multiple} x num_heads ({heads}), "
                f"and num_heads by num_key_value_heads ({groups})"
            )


def decoder_config(settings: dict[str, Any], vocab_size: int) -> PretrainedConfig:
    """Makes a decoder's config from the keys of a Hugging Face `config.json`.

    Raises:
        SailUsageError: an unknown `model_type`, keys that do not describe such a decoder, or layers that do not attend
            to all tokens before.
    """
    settings = {key: value for key, value in settings.items() if key not in IGNORED_CONFIG_KEYS}
    kind = settings.pop("model_type", "qwen2")
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_MAPPING:
        raise SailUsageError(f"there is no decoder with model_type {kind!r}; qwen2, qwen3 and llama are tested")
    for key in ("rope_scaling", "rope_parameters"):
        settings |= {key: _without_sections(settings[key])} if isinstance(settings.get(key), dict) else {}
    try:
        config = AutoConfig.for_model(kind, **settings, vocab_size=vocab_size)
    except Exception as error:  # any class: the library does not say which it raises
        reason = " ".join(str(error).split())
        raise SailUsageError(f"these settings do not describe a {kind} decoder: {reason}") from None
    heads, groups = (getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        fix = "num_key_value_heads must divide num_attention_heads"
        raise SailUsageError(f"{heads} heads cannot share {groups} keys and values; {fix}")
    layers = set(getattr(config, "layer_types", None) or [])
    window = not layers and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if window or "sliding_attention" in layers:
        raise SailUsageError(
            f"a {kind} decoder with sliding windows cannot be the core: all of an image is attended to"
        )
    if others := sorted(layers - {"full_attention"}):
        raise SailUsageError(
            f"a {kind} decoder with {others[0]} layers cannot be the core: each must attend to all tokens before"
        )
    config.pad_token_id = None  # an embedding with a padding id does not train that row
    use_attention(config, NAME)
    return config


def _without_sections(rope: dict[str, Any]) -> dict[str, Any]:
    """Returns rotary settings without multimodal sections, which are set here and do not scale the frequencies."""
    own = {key: value for key, value in rope.items() if key != "mrope_section"}
    if "mrope" in (own.get("type"), own.get("rope_type")):
        own.pop("type", None)
        own["rope_type"] = "default"
    return own


IGNORED_CONFIG_KEYS = frozenset(
    {
        *("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"),
        *("dtype", "torch_dtype", "use_cache", "attn_implementation"),
        *("architectures", "auto_map", "transformers_version", "_name_or_path", "_attn_implementation_autoset"),
    }
)
"""Keys of a `config.json` that the tokenizer or the run decides."""


def build_decoder(config: PretrainedConfig) -> Any:
    """Makes the decoder without its language head, with multimodal rotary positions.

    Raises:
        SailUsageError: a decoder that is built differently from Qwen2, Qwen3 and Llama.
    """
    config = copy.deepcopy(config)  # our attention is set on it, and two models may share one
    kind: Any = MODEL_MAPPING[type(config)]
    try:
        core = kind(config)
    except Exception as error:  # any class: the library does not say which it raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SailUsageError(f"a {config.model_type} decoder cannot be made from these settings ({reason})") from None
    if lacking := [part for part in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(core, part)]:
        raise SailUsageError(f"a {config.model_type} decoder has no {lacking[0]}, and cannot be the core")
    core.rotary_emb = MultimodalRotary(type(core.rotary_emb), config)
    return core


class MultimodalRotary(Float32Buffers):
    """Rotary angles of a decoder for positions (3, B, L): temporal (not used), height, width.

    The fast half of the frequencies encodes the height, the slow half the width; for text tokens, which have three
    equal positions, these are the decoder's own angles (official `mrope_section` [0, E/4, E/4]). Frequencies rounded to
    bfloat16 would be off by 1 rad at position 1000.

    Args:
        rotary: the decoder's own class of rotary embeddings, which applies its base and scaling.
        config: config of the decoder.

    Raises:
        SailUsageError: frequencies that change with the length, or an odd number of them.
    """

    frequencies: Tensor

    def __init__(self, rotary: type[nn.Module], config: PretrainedConfig) -> None:
        super().__init__()
        kind = (config.rope_parameters or {}).get("rope_type", "default")
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise SailUsageError(f"rotary frequencies of type {kind} change with the length, and cannot be multimodal")
        with torch.device("cpu"):  # not on the meta device
            own: Any = rotary(config)
        if not hasattr(own, "inv_freq"):
            raise SailUsageError(
                f"the rotary positions of a {config.model_type} decoder are not one list of frequencies"
            )
        if len(own.inv_freq) % 2:
            raise SailUsageError(f"heads with {2 * len(own.inv_freq)} rotary channels cannot be split into two axes")
        self.scaling = float(own.attention_scaling)
        self.register_buffer("frequencies", own.inv_freq.float(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines (B, L, E) in the dtype of `x`, computed in float32."""
        fast, slow = self.frequencies.to(x.device).chunk(2)
        height, width = position_ids[1, ..., None].float(), position_ids[2, ..., None].float()
        angles = torch.cat([height * fast, width * slow], dim=-1).repeat(1, 1, 2)
        return (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)


class Pixels(Float32Buffers):
    """Normalises raw patches (N, 3*P*P) uint8, channel first, to float32."""

    scale: Tensor
    shift: Tensor

    def __init__(self, patch_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        with torch.device("cpu"):
            means, stds = (torch.tensor(values, dtype=torch.float32) for values in (mean, std))
            pixels = patch_size * patch_size
            self.register_buffer("scale", (1 / (255 * stds)).repeat_interleave(pixels), persistent=False)
            self.register_buffer("shift", (-means / stds).repeat_interleave(pixels), persistent=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Maps pixel values 0..255 to (value / 255 - mean) / std."""
        return torch.addcmul(self.shift.to(patches.device), patches.float(), self.scale.to(patches.device))


__getattr__ = renamed(
    __name__,
    {
        "Exact": "sail_lightning.compat.torch:Float32Buffers",
        "Packed": "PackedAttention",
        "cached": "cached_attention",
        "uncompiled": "sail_lightning.compat.torch:uncompiled",
    },
)
