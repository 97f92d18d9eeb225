"""The single transformer with its heads, in pure torch: embed, put prompts in, read, and answer only what is needed.

patches, words -> one sequence -> transformer -> hidden states
    rows that predict a supervised word      -> vocabulary logits
    vision tokens of pictures with a [SEG]   -> upsampler -> mask features
    [SEG] states                             -> mask queries;  mask logits = queries . features
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sail_lightning.batch import PackedBatch
from sail_lightning.interfaces import Backbone, Dims, PromptEncoder, Upsampler


@dataclass(frozen=True)
class FeatureGroup:
    """Feature maps (B, C, h, w) of pictures with one grid, and which pictures of the batch they are."""

    images: tuple[int, ...]
    maps: Tensor


@dataclass(frozen=True)
class ModelOutput:
    """What one packed forward pass gives.

    `hidden` (T, D) after the final norm; `logits` (S, V) at the supervised rows; `mask_logits`, per picture that owns a
    `[SEG]`, (n, h, w) (one empty group where none does); `vision` and `mask` features of the pictures that were asked
    for.
    """

    hidden: Tensor
    logits: Tensor
    mask_logits: tuple[Tensor, ...]
    vision: tuple[FeatureGroup, ...]
    mask: tuple[FeatureGroup, ...]


class MaskHead(nn.Module):
    """Two small projections into one space: `[SEG]` states to queries, upsampled features to keys.

    Official names: `seg_token_projector`, `image_feature_projector` (Linear, ReLU, Linear each).
    """

    def __init__(self, hidden_size: int, feature_channels: int, channels: int) -> None:
        super().__init__()
        self.seg_projector = nn.Sequential(
            nn.Linear(hidden_size, feature_channels), nn.ReLU(), nn.Linear(feature_channels, channels)
        )
        self.feature_projector = nn.Sequential(
            nn.Linear(feature_channels, feature_channels), nn.ReLU(), nn.Linear(feature_channels, channels)
        )

    def queries(self, states: Tensor) -> Tensor:
        """`[SEG]` states (n, D) to mask queries (n, channels)."""
        return self.seg_projector(states)

    def keys(self, features: Tensor) -> Tensor:
        """Upsampled features (B, C, h, w) to (B, channels, h, w)."""
        return self.feature_projector(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @staticmethod
    def logits(queries: Tensor, keys: Tensor) -> Tensor:
        """Queries (n, channels) of one picture and its keys (channels, h, w) to mask logits (n, h, w)."""
        return torch.einsum("nc,chw->nhw", queries, keys)


class SailModel(nn.Module):
    """Composes the sockets. Weights exist after `build`.

    Args:
        backbone: the single transformer.
        upsampler: vision tokens to mask features.
        prompt_encoder: how regions enter.
        mask_channels: size of mask queries and keys (256 in the paper).
    """

    def __init__(
        self, backbone: Backbone, upsampler: Upsampler, prompt_encoder: PromptEncoder, mask_channels: int = 256
    ) -> None:
        super().__init__()
        self.backbone, self.upsampler, self.prompt_encoder = backbone, upsampler, prompt_encoder
        self.mask_channels = mask_channels
        self.dims = Dims()

    def build(self, vocab_size: int, new_words: int = 0) -> Dims:
        """Makes all weights, in order; returns what the plugins published. `new_words`: see `Dims`."""
        dims = self.backbone.build(Dims(vocab_size=vocab_size, new_words=new_words))
        dims = self.upsampler.build(dims)
        dims = self.prompt_encoder.build(dims)
        self.mask_head = MaskHead(dims.hidden_size, dims.feature_channels, self.mask_channels)
        self.dims = dims
        return dims

    def embed(self, batch: PackedBatch) -> Tensor:
        """Words, patches and regions as one row of embeddings (T, D)."""
        embeddings = self.backbone.embed_tokens(batch.ids)
        patches = self.backbone.embed_patches(batch.patches, batch.grids)
        embeddings = embeddings.index_add(0, batch.patch_rows, patches.to(embeddings.dtype))
        region_tokens = self.backbone.embed_tokens(batch.regions.token_ids)
        return self.prompt_encoder(embeddings, batch.regions, region_tokens)

    def forward(self, batch: PackedBatch, taps: Collection[str] = ()) -> ModelOutput:
        """Reads a batch. `taps` are the student features that teachers want of every picture: `vision`, `mask`."""
        hidden = self.backbone(self.embed(batch), batch.positions, batch.plan, batch.vision)
        tokens = self.vision_tokens(hidden, batch)
        everything = range(len(batch.grids))
        mask = self.mask_features(tokens, batch.grids, everything if "mask" in taps else batch.seg_image, hidden)
        return ModelOutput(
            hidden=hidden,
            logits=self.backbone.logits(hidden.index_select(0, batch.target_rows)),
            mask_logits=self._mask_logits(hidden, batch, mask),
            vision=group_maps(tokens, batch.grids, everything) if "vision" in taps else (),
            mask=mask,
        )

    def vision_tokens(self, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, ...]:
        """The states (rows*columns, D) of each picture's vision tokens."""
        lengths = [rows * columns for rows, columns in batch.grids]
        return hidden.index_select(0, batch.patch_rows).split(lengths) if lengths else ()

    def mask_features(
        self, tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], images: Collection[int], like: Tensor
    ) -> tuple[FeatureGroup, ...]:
        """Mask features (B, mask_channels, h, w) of the pictures named in `images`.

        Of no picture: zero rows that keep every weight in the graph, with the type and device of `like` (..., D).
        """
        groups = group_maps(tokens, grids, images)
        if not groups:
            groups = (FeatureGroup((), like.new_zeros(0, like.shape[-1], 1, 1)),)
        return tuple(FeatureGroup(group.images, self.mask_head.keys(self.upsampler(group.maps))) for group in groups)

    def _mask_logits(self, hidden: Tensor, batch: PackedBatch, groups: Sequence[FeatureGroup]) -> tuple[Tensor, ...]:
        queries = self.mask_head.queries(hidden.index_select(0, batch.seg_rows))
        if not batch.seg_image:
            return (MaskHead.logits(queries, groups[0].maps.sum(0)),)
        keys = {image: maps for group in groups for image, maps in zip(group.images, group.maps, strict=True)}
        split = queries.split(list(batch.seg_counts))
        return tuple(MaskHead.logits(own, keys[image]) for own, image in zip(split, batch.seg_image, strict=True))


def group_maps(
    tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]], images: Collection[int]
) -> tuple[FeatureGroup, ...]:
    """Vision tokens (rows*columns, D) per picture as maps (B, D, rows, columns), pictures of one grid together."""
    by_grid: dict[tuple[int, int], list[int]] = {}
    for image in images:
        by_grid.setdefault(grids[image], []).append(image)
    return tuple(
        FeatureGroup(tuple(members), torch.stack([tokens[i] for i in members]).unflatten(1, grid).permute(0, 3, 1, 2))
        for grid, members in by_grid.items()
    )
