"""`EVEv2`: EVE's encoder-free transformer, with separate weights for text and for pixels in every layer.

Hugging Face's parts of Qwen2 are composed, not copied. Attention joins the modalities; norms and matrices do not. So
tokens are sorted once, text first, and every matrix reads its own contiguous part; only attention sees the order of the
sequence. Parameters have the official names: `q_proj` is for text, `moe_q_proj` for pixels. The final norm and the
language head are shared. Details: `docs/parity.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Config

from sail_lightning.compat.torch import Float32Buffers, uncompiled
from sail_lightning.compat.transformers import (
    GradientCheckpointingLayer,
    Qwen2MLP,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
)
from sail_lightning.interfaces import Attention, Dims, KeyValueCache
from sail_lightning.model import contract
from sail_lightning.plugins.backbones.core import (
    LABORATORY,
    DecoderBackbone,
    Pixels,
    cached_attention,
    compile_layers,
    decoder_config,
)
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.sequence.chat_template import QWEN_CHAT
from sail_lightning.sequence.layout import CLASS_VECTOR, PATCH_ONLY, ROW_VECTOR, ImageLayout
from sail_lightning.settings.ranges import PositiveInt

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per-channel mean and standard deviation of pixels in [0, 1] (CLIP's, as in the official code)."""

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"patch_stride": 4, "dense_stride": 2, "mm_hidden_size": 64, **LABORATORY, "rms_norm_eps": 1e-6},
    "7b": {
        "patch_stride": 16,
        "dense_stride": 2,
        "mm_hidden_size": 1024,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "embedding_range": 0.02,
    },
}
"""Sizes of EVEv2-7B, which has the decoder of Qwen2.5-7B, and of a laboratory model."""

Attend = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
"""Maps query (R, H, E), key and value (R, G, E) in the order of the sequence, scale and layer to (R, H, E)."""
Part = Callable[[Tensor], Tensor]


@register
class EVEv2(DecoderBackbone):
    """EVE's transformer: separate weights for text and for pixels, strictly causal, with counted positions.

    It goes with `PromptInjection(projection=False)`; `max_side` of the model sets the area of the image (official: 800
    or 1600).

    Args:
        size: preset of sizes; sizes that are given override it.
        patch_stride: pixels per side of a kernel of the first convolution of the patch embedding.
        dense_stride: outputs of the first convolution per side of a kernel of the second; a patch has a side of
            patch_stride x dense_stride pixels.
        mm_hidden_size: number of channels between the two convolutions.
        kwargs: arguments of `DecoderBackbone`; `embedding_range` applies to the learned vectors too.
    """

    chat = QWEN_CHAT
    image_layout = ImageLayout(
        start=(CLASS_VECTOR,),
        patch=PATCH_ONLY,
        row_end=(ROW_VECTOR,),
        end=(),
        grid_positions=False,
        bidirectional=False,
    )
    resize_mode = "area"

    def __init__(
        self,
        size: Literal["tiny", "7b"] = "tiny",
        *,
        patch_stride: PositiveInt | None = None,
        dense_stride: PositiveInt | None = None,
        mm_hidden_size: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = self.with_sizes(PRESETS[size])
        self.check_heads(sizes, 2)
        own_embedding = sizes.pop("embedding_range")
        spread: float = self.embedding_range or own_embedding
        self.embedding_range = spread
        self.patch_stride: int = patch_stride or sizes["patch_stride"]
        self.dense_stride: int = dense_stride or sizes["dense_stride"]
        self.mm_hidden_size: int = mm_hidden_size or sizes["mm_hidden_size"]
        own = ("patch_stride", "dense_stride", "mm_hidden_size")
        self.settings = {"model_type": "qwen2", **{key: value for key, value in sizes.items() if key not in own}}

    def build(self, dims: Dims) -> Dims:
        config = decoder_config(self.settings, dims.vocab_size)
        assert isinstance(config, Qwen2Config)
        hidden, spread = config.hidden_size, config.initializer_range
        assert self.embedding_range is not None
        contract.build(self.attention, dims)
        self.model = Decoder(config)
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()  # type: ignore[operator]
        self.lm_head = nn.Linear(hidden, dims.vocab_size, bias=False)
        self.patch_embedding = PatchEmbedding(self.patch_stride, self.dense_stride, self.mm_hidden_size, hidden)
        self.class_embedding = nn.Parameter(torch.empty(hidden))
        self.split_embedding = nn.Parameter(torch.empty(hidden))
        for table in (self.model.embed_tokens.weight, self.class_embedding, self.split_embedding):
            nn.init.normal_(table, std=self.embedding_range)
        for parameter in self.patch_embedding.parameters():  # kernels and biases
            nn.init.normal_(parameter, std=spread if parameter.ndim > 1 else 0.0)
        nn.init.normal_(self.lm_head.weight, std=spread)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        patch_size = self.patch_stride * self.dense_stride
        self.pixels = Pixels(patch_size, IMAGE_MEAN, IMAGE_STD)
        return Dims(dims.vocab_size, dims.num_added_tokens, hidden, patch_size)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        tokens = self.model.embed_tokens(ids.clamp(min=0))
        ids = ids[..., None]
        vectors = torch.where(ids == CLASS_VECTOR, self.class_embedding, self.split_embedding)
        return torch.where(ids < 0, vectors, tokens).masked_fill(ids == PATCH_ONLY, 0.0)

    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.patch_embedding(self.pixels(patches).to(self.class_embedding.dtype))

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        vision: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        self.attention.prepare(plan, embeddings.device)
        if self.compile_layers:
            compile_layers(self.model.layers)
        return self.model(embeddings, positions[0], Modalities.of(vision), PackedRows(self.attention, plan, cache))

    def decode(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        over_cache = cached_attention(cache)

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, layer: int) -> Tensor:
            query, key, value = (rows.transpose(0, 1)[None] for rows in (query, key, value))
            return over_cache(query, *cache.update(key, value, layer), scale)[0]

        return self.model(embeddings, positions[0], Modalities(text=len(embeddings)), attend)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """`core.PackedAttention` for rows without a batch axis; stores keys and values in a cache, if there is one."""

    kernel: Attention
    plan: AttentionPlan
    cache: KeyValueCache | None = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: int) -> Tensor:
        if self.cache is not None:
            self.cache.update(key.transpose(0, 1)[None], value.transpose(0, 1)[None], layer)
        output = self.kernel(query, key, value, self.plan, scale)
        return contract.expect(output, self.kernel, "forward", query.shape, "(T, H, E)")


@dataclass(frozen=True)
class Modalities:
    """How R tokens are sorted by modality: `text` text tokens first, then vision tokens, each in sequence order.

    `order` (R,) int64 holds the sequence indices in sorted order, `inverse` (R,) the sorted index of each token; None
    where all tokens are of one modality, and nothing moves.
    """

    text: int
    order: Tensor | None = None
    inverse: Tensor | None = None

    @classmethod
    def of(cls, vision: Tensor) -> Modalities:
        """Makes the order for a mask (R,) bool that is True at vision tokens."""
        text = len(vision) - int(vision.sum())  # the only wait for an accelerator in a pass
        if text in (0, len(vision)):
            return cls(text)
        order = vision.to(torch.uint8).argsort(stable=True)
        return cls(text, order, order.argsort())

    def sort(self, tokens: Tensor) -> Tensor:
        """Sorts tokens (R, ...) that are in the order of the sequence."""
        return tokens if self.order is None else tokens.index_select(0, self.order)

    def restore(self, tokens: Tensor) -> Tensor:
        """Brings sorted tokens (R, ...) back into the order of the sequence."""
        return tokens if self.inverse is None else tokens.index_select(0, self.inverse)

    def apply(self, text_part: Part, vision_part: Part, tokens: Tensor) -> Tensor:
        """Applies one module to the text tokens and one to the vision tokens of R sorted tokens."""
        if not torch.is_grad_enabled():  # in training, a part without tokens has a gradient of zero, not none
            if self.text == len(tokens):
                return text_part(tokens)
            if self.text == 0:
                return vision_part(tokens)
        text, vision = tokens.split([self.text, len(tokens) - self.text])
        return torch.cat([text_part(text), vision_part(vision)])


class Decoder(Qwen2PreTrainedModel):
    """The embedding table, the layers and the final norm, which both modalities share."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        with torch.device("cpu"):  # not on the meta device
            self.rotary_emb = Rotary(config)
        self.post_init()

    def forward(self, hidden: Tensor, positions: Tensor, modalities: Modalities, attend: Attend) -> Tensor:
        """Maps embeddings (R, D) at positions (R,) to states (R, D), both in the order of the sequence."""
        hidden = modalities.sort(hidden)
        cos, sin = self.rotary_emb(hidden, modalities.sort(positions))
        over_cache = not isinstance(attend, PackedRows) or attend.cache is not None  # the cache grows in every step
        with uncompiled(self.layers) if over_cache else nullcontext():
            for layer in self.layers:
                hidden = layer(hidden, cos=cos, sin=sin, modalities=modalities, attend=attend)
        return self.norm(modalities.restore(hidden))


class DecoderLayer(GradientCheckpointingLayer):
    """Two layers of Qwen2, one per modality, joined in attention."""

    def __init__(self, config: Qwen2Config, index: int) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = JointAttention(config, index)
        self.mlp, self.moe_mlp = Qwen2MLP(config), Qwen2MLP(config)
        self.input_layernorm, self.moe_input_layernorm = Qwen2RMSNorm(width, eps), Qwen2RMSNorm(width, eps)
        self.post_attention_layernorm = Qwen2RMSNorm(width, eps)
        self.moe_post_attention_layernorm = Qwen2RMSNorm(width, eps)

    def forward(self, hidden: Tensor, *, cos: Tensor, sin: Tensor, modalities: Modalities, attend: Attend) -> Tensor:
        """Maps sorted states (R, D) to sorted states (R, D); `cos` and `sin` (R, E) are their rotary angles."""
        normed = modalities.apply(self.input_layernorm, self.moe_input_layernorm, hidden)
        hidden = hidden + self.self_attn(normed, cos, sin, modalities, attend)
        normed = modalities.apply(self.post_attention_layernorm, self.moe_post_attention_layernorm, hidden)
        return hidden + modalities.apply(self.mlp, self.moe_mlp, normed)


class JointAttention(nn.Module):
    """Attention over all tokens, with projections by modality."""

    def __init__(self, config: Qwen2Config, index: int) -> None:
        super().__init__()
        width, self.index = config.hidden_size, index
        self.head_size = width // config.num_attention_heads
        few = (config.num_key_value_heads or config.num_attention_heads) * self.head_size
        self.q_proj, self.moe_q_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.k_proj, self.moe_k_proj = nn.Linear(width, few), nn.Linear(width, few)
        self.v_proj, self.moe_v_proj = nn.Linear(width, few), nn.Linear(width, few)
        self.o_proj, self.moe_o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, modalities: Modalities, attend: Attend) -> Tensor:
        """Maps sorted states (R, D) to sorted states (R, D)."""
        projections = (
            (self.q_proj, self.moe_q_proj),
            (self.k_proj, self.moe_k_proj),
            (self.v_proj, self.moe_v_proj),
        )
        query, key, value = (
            modalities.apply(*pair, hidden).unflatten(-1, (-1, self.head_size)) for pair in projections
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        query, key, value = (modalities.restore(tokens) for tokens in (query, key, value))
        out = attend(query, key, value, self.head_size**-0.5, self.index).flatten(1)
        return modalities.apply(self.o_proj, self.moe_o_proj, modalities.sort(out))


class Rotary(Float32Buffers, Qwen2RotaryEmbedding):
    """Qwen2's rotary angles for positions (R,), with frequencies that stay float32."""


class PatchEmbedding(nn.Sequential):
    """Maps pixels (N, 3*P*P), channel first, to embeddings (N, D): two convolutions with a GELU between them.

    The kernels do not overlap and fill the patch, so each convolution is one matrix product.
    """

    def __init__(
        self,
        patch_stride: int,
        dense_stride: int,
        channels: int,
        hidden_size: int,
    ) -> None:
        first = nn.Conv2d(3, channels, patch_stride, patch_stride)
        super().__init__(first, nn.GELU(), nn.Conv2d(channels, hidden_size, dense_stride, dense_stride))
        self.patch_stride, self.dense_stride = patch_stride, dense_stride

    @property
    def convolutions(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """The two convolutions, in order."""
        first, _, second = self
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        return first, second

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps normalised pixels (N, 3*P*P) to embeddings (N, D)."""
        first, second = self.convolutions
        fine, dense = self.patch_stride, self.dense_stride
        cells = pixels.unflatten(1, (3, dense, fine, dense, fine)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        cells = F.gelu(F.linear(cells, first.weight.flatten(1), first.bias))
        return F.linear(cells.flatten(1), second.weight.permute(0, 2, 3, 1).flatten(1), second.bias)
