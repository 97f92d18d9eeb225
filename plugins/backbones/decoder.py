"""`SailDecoder`: any Hugging Face decoder with rotary positions as the single transformer.

The decoder (Qwen2, Qwen3, Llama, ...) is composed, not copied: our attention function is registered with it, its rotary
positions are made multimodal, and patches enter through one linear layer. Text is read exactly as before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sail_lightning.compat.torch import uncompiled
from sail_lightning.compat.transformers import read_embeddings
from sail_lightning.errors import SailUsageError
from sail_lightning.image.preprocessing import IMAGE_MEAN, IMAGE_STD
from sail_lightning.interfaces import Dims, KeyValueCache
from sail_lightning.model import contract
from sail_lightning.plugins.backbones.core import (
    Attend,
    DecoderBackbone,
    PackedAttention,
    Pixels,
    build_decoder,
    cached_attention,
    compile_layers,
    decoder_config,
)
from sail_lightning.plugins.backbones.parity_check import check_unchanged
from sail_lightning.plugins.backbones.pretrained import load_decoder, read_config
from sail_lightning.registry import register
from sail_lightning.sequence.attention_plan import AttentionPlan
from sail_lightning.settings.ranges import NonNegativeFloat, PositiveInt, refuse_empty


@register
class SailDecoder(DecoderBackbone):
    """A decoder of your choice as the single transformer.

    Args:
        pretrained: a local Hugging Face folder (config.json and weights) to start from; name it as the tokenizer too.
        config: the keys of a config.json, for fresh weights, in place of `pretrained`; one of the two must be given.
        patch_size: pixels per patch side; None is the folder's `vision_patch_size`, or 16.
        patch_range: standard deviation of the initial patch embedding; None gives patch embeddings the RMS norm of
            token embeddings.
        class_token: end an image with `<|vis_cls|>`, which some SOLO models were trained with.
        bidirectional: whether the tokens of an image attend to each other in both directions; else they are causal, as
            text is.
        grid_positions: whether the position of a patch is its row and column (M-RoPE); else patches are counted.
        kwargs: arguments of `DecoderBackbone`; sizes among them replace those of `config`.
    """

    families: ClassVar[tuple[str, ...]] = ()
    """Values of `model_type` that a subclass accepts; empty means all."""
    model: Any
    """The decoder without its language head, of the library's class."""

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        *,
        patch_size: PositiveInt | None = None,
        patch_range: NonNegativeFloat | None = None,
        class_token: bool = False,
        bidirectional: bool = True,
        grid_positions: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        after = ("<|vis_cls|>",) if class_token else self.image_layout.after
        self.image_layout = replace(  # type: ignore[misc]
            self.image_layout,
            after=after,
            bidirectional=self.image_layout.bidirectional and bidirectional,
            grid_positions=self.image_layout.grid_positions and grid_positions,
        )
        if (pretrained is None) == (config is None):
            raise SailUsageError(f"{type(self).__name__} needs either pretrained (a folder) or config (its settings)")
        refuse_empty(self, config=config)
        own = next(iter(self.sizes), None if self.embedding_range is None else "embedding_range")
        if pretrained is not None and own is not None:
            raise SailUsageError(f"{type(self).__name__}: {own} is a pretrained decoder's own; leave it out")
        self.pretrained = pretrained
        self.settings = self.with_sizes(config or {})
        self.patch_size = patch_size
        self.patch_range = patch_range

    def export_init_args(self) -> dict[str, Any]:
        """Returns the arguments, with the folder replaced by its config: a stored model does not need the folder."""
        if self.pretrained is None:
            return self.init_args
        return self.init_args | {"pretrained": None, "config": self.settings, "patch_size": self.patch_size}

    def build(self, dims: Dims) -> Dims:
        """Makes the weights, and reads those of `pretrained`.

        Raises:
            SailUsageError: the decoder cannot be the core.
            SailError: the folder is incomplete, or its weights do not fit its config.
        """
        folder = None if self.pretrained is None else Path(self.pretrained).expanduser()
        if folder is not None:
            self.settings = read_config(folder)
        self.patch_size = self.patch_size or int(self.settings.get("vision_patch_size", 16))
        contract.build(self.attention, dims)
        try:
            hidden = self._build_decoder(dims, folder)
        except SailUsageError as error:
            raise SailUsageError(f"{folder / 'config.json'}: {error}" if folder else str(error)) from None
        return Dims(dims.vocab_size, dims.num_added_tokens, hidden, self.patch_size)

    def _build_decoder(self, dims: Dims, folder: Path | None) -> int:
        """Makes and fills all weights; returns the hidden size."""
        kind = self.settings.get("model_type", "qwen2")
        if self.families and kind not in self.families:
            families = " or ".join(self.families)
            raise SailUsageError(
                f"{type(self).__name__} takes decoders of type {families}, not {kind}; use SailDecoder"
            )
        config = decoder_config(self.settings, dims.vocab_size)
        self.model = build_decoder(config)
        if self.activation_checkpointing:
            self.model.activation_checkpointing_enable()
        hidden = int(config.hidden_size)
        self.lm_head = nn.Linear(hidden, dims.vocab_size, bias=False)
        if self.embedding_range is not None:
            nn.init.normal_(self.model.embed_tokens.weight, std=self.embedding_range)
        nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.build_patches(hidden, self.patch_size or 0)
        read: set[str] = set()
        if folder is not None:
            read = load_decoder(self, folder, dims)
        self.init_patches(read)
        check_unchanged(self.model, self.lm_head)
        return hidden

    def build_patches(self, hidden: int, patch_size: int) -> None:
        """Makes the patch embedding."""
        self.vis_embed = nn.Linear(3 * patch_size * patch_size, hidden, bias=False)
        self.pixels = Pixels(patch_size, IMAGE_MEAN, IMAGE_STD)

    def init_patches(self, read: set[str]) -> None:
        """Gives the patch embedding its initial values, unless it was `read` from a folder."""
        if "vis_embed.weight" in read:
            return
        std = self.patch_range
        if std is None:  # pixels have unit variance
            table = self.model.embed_tokens.weight
            embedding_std = 0.02 if table.is_meta else float(table.detach().float().std())
            std = embedding_std / math.sqrt(self.vis_embed.in_features)
        nn.init.normal_(self.vis_embed.weight, std=std)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids)

    def embed_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        return self.vis_embed(self.pixels(patches).to(self.vis_embed.weight.dtype))

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        vision: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        self.attention.prepare(plan, embeddings.device)
        return self._run(embeddings, positions, cache, PackedAttention(self.attention, plan))

    def decode(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        return self._run(embeddings, positions, cache, cached_attention(cache))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)

    def _run(self, embeddings: Tensor, positions: Tensor, cache: KeyValueCache | None, attend: Attend) -> Tensor:
        rows = embeddings[None]
        if self.compile_layers:
            rows = rows.clone()  # for a view, the first layer would be compiled once more
        with self._compilation(over_cache=cache is not None):
            return read_embeddings(self.model, rows, positions[:, None], cache, sail_attend=attend)[0]

    def _compilation(self, over_cache: bool) -> AbstractContextManager[None]:
        if not self.compile_layers:
            return nullcontext()
        if over_cache:  # the cache grows in every step
            return uncompiled(self.model.layers)
        compile_layers(self.model.layers)
        return nullcontext()
